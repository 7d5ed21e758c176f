"""Thousands of RL steps on a toy model: the engine's memory and open files stay flat.

    python -m benchmarks.soak                  5 minutes of warm-up, then 4,000 steps
    python -m benchmarks.soak --steps 20000 --out /tmp/soak.json

Each step samples a group from the sampler of the present weights, trains on it with importance
sampling, and asks for the next sampler. Every 50 steps the policy is saved under the same name,
and another client opens a session, trains, samples and closes. What is measured is the engine's
process. Until the warm-up is over it rightly grows: results are kept for two to three minutes
after they were fetched, 256 samplers for each session, and the latest 10,000 requests of a session
for its trace. The result is benchmarks/soak.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tinker
from scipy.stats import theilslopes
from tinker import types

from benchmarks.work import write_model
from posttrain.engine.files import raise_file_limit
from posttrain.runs import git_commit, git_dirty, write_json

KEY = "tml-soak"
RESULT = Path(__file__).with_suffix(".json")
ADAM = types.AdamParams(learning_rate=1e-3)
OTHERS = 50  # steps between two visits of another client
MEMORY = 4096  # KiB by which the engine may seem to grow: the steps of its allocator
FILES = 8  # more open at most: connections come and go
WARM_UP = 300.0  # seconds


@dataclass(frozen=True)
class Reading:
    """The engine's process after a step."""

    step: int
    seconds: float  # since the first step
    memory: int  # KiB resident
    files: int  # open, connections included
    threads: int
    snapshots: int  # files of samplers without a name
    checkpoints: int  # directories of durable ones
    samplers: int
    sessions: int
    results: int  # kept for clients to fetch, or to fetch again


def read(step: int, seconds: float, url: str, pid: int, state: Path) -> Reading:
    health = httpx.get(f"{url}/healthz").json()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Reading(
        step,
        round(seconds, 1),
        int(status["VmRSS"].split()[0]),
        len(os.listdir(f"/proc/{pid}/fd")),
        int(status["Threads"]),
        len(list((state / "scratch").glob("*/*"))),
        len(list((state / "data").iterdir())),
        health["samplers"],
        health["sessions"],
        health["results"],
    )


def datum(prompt: list[int], sequence: types.SampledSequence, advantage: float) -> types.Datum:
    whole, gone = [*prompt, *sequence.tokens], len(prompt) - 1
    inputs: Any = {
        "target_tokens": whole[1:],
        "logprobs": [0.0] * gone + list(sequence.logprobs or []),
        "advantages": [0.0] * gone + [advantage] * len(sequence.tokens),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(whole[:-1]), loss_fn_inputs=inputs)


def rl_steps(policy: tinker.TrainingClient) -> Iterator[int]:
    """RL steps, numbered from 1, on groups of four that are rewarded for small tokens."""
    sampler = policy.save_weights_and_get_sampling_client()
    for step in count(1):
        prompt = np.random.default_rng(step).integers(1, 256, 6).tolist()
        asked = types.ModelInput.from_ints(prompt), 4, types.SamplingParams(max_tokens=8, seed=step)
        sequences = sampler.result().sample(*asked).result().sequences
        rewards = np.array([-np.mean(sequence.tokens) / 256 for sequence in sequences])
        advantages = (rewards - rewards.mean()).tolist()
        data = [datum(prompt, s, a) for s, a in zip(sequences, advantages, strict=True)]
        trained = policy.forward_backward(data, "importance_sampling")
        stepped = policy.optim_step(ADAM)
        sampler = policy.save_weights_and_get_sampling_client()
        trained.result()
        stepped.result()
        yield step


def soak(
    service: tinker.ServiceClient,
    visitor: Callable[[], tinker.ServiceClient],
    others: int = OTHERS,
) -> Iterator[int]:
    """The numbers of the steps, each when it is done, without end."""
    policy = service.create_lora_training_client("toy", rank=4, seed=0).result()
    for step in rl_steps(policy):
        if step % others == 0:
            policy.save_state("latest", overwrite=True).result()
            other = visitor()
            visit = other.create_lora_training_client("toy", rank=4, seed=step).result()
            next(rl_steps(visit))
            other.close("success").result()
        yield step


def growth(readings: list[Reading]) -> dict[str, float]:
    """KiB by which memory grows (by its median slope), and how many more files are open at most in
    the second half than in the first: clients open connections one by one, and leave them to the
    garbage collector all at once."""
    steps, memory = [r.step for r in readings], [r.memory for r in readings]
    slope = float(theilslopes(memory, steps).slope)
    half = len(readings) // 2
    before, after = ([r.files for r in part] for part in (readings[:half], readings[half:]))
    return {
        "memory_kib": round(slope * (steps[-1] - steps[0]), 1),
        "memory_kib_per_step": round(slope, 4),
        "files": float(max(after) - max(before)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4000, help="steps after the warm-up")
    parser.add_argument("--every", type=int, default=20, help="steps between two readings")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    raise_file_limit()
    os.environ["TINKER_TELEMETRY"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        model, state, ready = (Path(folder) / name for name in ("model", "state", "ready"))
        write_model(model, "toy")
        command = [sys.executable, "-m", "posttrain.engine", "--model", f"toy={model}"]
        command += ["--state", str(state), "--ready", str(ready), "--parent", str(os.getpid())]
        process = subprocess.Popen(
            [*command, "--threads", "1", "--device", "cpu"],
            env={**os.environ, "POSTTRAIN_ENGINE_KEY": KEY},
            stdout=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    sys.exit("the engine did not start")
                time.sleep(0.1)
            measure(ready.read_text(), process.pid, state, args)
        finally:
            process.terminate()
            process.wait()


def measure(url: str, pid: int, state: Path, args: argparse.Namespace) -> None:
    def connect() -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=url, api_key=KEY)

    code = {"commit": git_commit(), "dirty": git_dirty()}
    service, begin, readings = connect(), time.monotonic(), []
    warm: int | None = None  # the first step after the warm-up
    for step in soak(service, connect):
        seconds = time.monotonic() - begin
        if warm is None and seconds >= WARM_UP:
            warm = step
        if step % args.every == 0:
            readings.append(read(step, seconds, url, pid, state))
            print(readings[-1], flush=True)
        if warm is not None and step >= warm + args.steps:
            break
    service.close("success").result()
    closed = read(step, time.monotonic() - begin, url, pid, state)
    found = growth([reading for reading in readings if reading.seconds >= WARM_UP])
    flat = found["memory_kib"] <= MEMORY and found["files"] <= FILES
    freed = closed.sessions == closed.samplers == closed.snapshots == 0
    write_json(
        args.out,
        {
            "command": "python -m benchmarks.soak",
            "steps": step,
            "warm_up_seconds": WARM_UP,
            "seeds": "training client 0, visitors and prompts by the number of the step",
            "growth_after_warm_up": found,
            "allowed": {"memory_kib": MEMORY, "files": FILES},
            "flat": flat,
            "freed": freed,
            **code,
            "machine": f"{platform.platform()}, {os.cpu_count()} cores, one thread computing",
            "python": platform.python_version(),
            "torch": version("torch"),
            "tinker": version("tinker"),
            "closed": asdict(closed),
            "readings": [asdict(reading) for reading in readings],
        },
    )
    print(found, flush=True)
    if not flat:
        sys.exit("the engine grows")
    if not freed:
        sys.exit("the engine keeps what a closed session held")


if __name__ == "__main__":
    main()

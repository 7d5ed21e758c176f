"""What a first step and a single call are made of: processor time of the client and of the engine.

    python -m benchmarks.parts              a minute

On one core the two processes take turns, so that their processor times add up to the time that
`benchmarks.run` measures (W4, and calls). Processor time says little of what else the machine does.
Model `tiny`, float32, one thread. The result is benchmarks/parts.json, and a section of
docs/benchmarks.md: `python -m benchmarks.run --page` writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cell import keep_to
from benchmarks.run import processor
from benchmarks.work import FULL, write_model
from posttrain.runs import git_commit, git_dirty, write_json

RESULT = Path(__file__).with_suffix(".json")
ROUNDS = 5
CALLS = 200
IMPORTS = {"torch": "torch", "client": "benchmarks.sdk", "engine": "posttrain.engine.server"}
Parts = dict[str, dict[str, float]]  # part -> who -> seconds of processor time


def of_process(pid: int) -> float:
    """Seconds of processor time that a process has had, to a hundredth (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def of_import(module: str) -> float:
    """Seconds of processor time that a Python takes to start and to import `module`."""
    before = os.times()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])  # of children, in user and in system mode


@contextmanager
def counted(found: dict[str, float], engine: int, times: int = 1) -> Iterator[None]:
    """Adds what client and engine take inside, each time: `client`, `engine`, and `time`."""
    clock, own, other = time.perf_counter(), time.process_time(), of_process(engine)
    yield
    found["client"] = (time.process_time() - own) / times
    found["engine"] = (of_process(engine) - other) / times
    found["time"] = (time.perf_counter() - clock) / times


def first_step(model: Path) -> Parts:
    """Of this process, which has done nothing yet, and of the engine that it starts: until a
    training client is `ready` (the engine's imports included), and the `step`."""
    from benchmarks.sdk import Sdk

    imported, step = time.process_time(), dict[str, float]()
    sdk = Sdk(model, "tiny", "float32")
    ready = {"client": time.process_time() - imported, "engine": of_process(sdk.process)}
    with counted(step, sdk.process):
        sdk.w1(FULL)
    return {"ready": ready, "step": step}


def calls(model: Path) -> Parts:
    """Of one call, awaited before the next, on a few tokens."""
    import tinker

    from benchmarks.sdk import ADAM, Sdk
    from posttrain.datums import supervised_datum

    sdk = Sdk(model, "tiny", "float32")
    sampler = sdk.policy.save_weights_and_get_sampling_client().result()
    row = sdk.tokens(1, 9)[0]
    datum, prompt = supervised_datum(row[:1], row[1:]), tinker.ModelInput.from_ints(row[:1])
    params = tinker.SamplingParams(max_tokens=1, temperature=1.0)
    works: dict[str, Callable[[], object]] = {
        "optim_step": lambda: sdk.policy.optim_step(ADAM).result(),
        "forward_backward and optim_step": lambda: sdk.train([datum], "cross_entropy"),
        "sample": lambda: sampler.sample(prompt, 1, params).result(),
    }
    parts: Parts = {name: {} for name in works}
    for name, work in works.items():
        work()
        with counted(parts[name], sdk.process, CALLS):
            for _ in range(CALLS):
                work()
    return parts


def measured(what: str, model: Path) -> Parts:
    """`first_step` or `calls`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.parts", "--only", what, "--model", str(model)]
    found: Parts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def medians(rounds: list[Parts]) -> Parts:
    first = rounds[0]
    return {
        part: {
            who: round(statistics.median(r[part][who] for r in rounds), 5) for who in first[part]
        }
        for part in first
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", choices=["first", "calls"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        found = {"first": first_step, "calls": calls}[args.only](args.model)
        print(json.dumps(found))
        return
    keep_to(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    result: dict[str, Any] = {"commit": git_commit(), "dirty": git_dirty()}
    result |= {"processor": processor(), "rounds": args.rounds, "torch": version("torch")}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        write_model(model, "tiny")
        steps, single = [], []
        for number in range(args.rounds):
            steps.append(measured("first", model))
            steps[-1]["imports"] = {who: of_import(name) for who, name in IMPORTS.items()}
            single.append(measured("calls", model))
            print(f"{number + 1}/{args.rounds}: {steps[-1]}", flush=True)
    write_json(args.out, result | {"first step": medians(steps), "calls": medians(single)})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

"""How fast the engine is: four pieces of work on one thread, beside the multiplication peak.

    python -m benchmarks.engine --shape tiny small base --work w1 w2 w3 --dtype float32
    python -m benchmarks.engine --shape tiny small --work w1 w2 --plain

W1 SFT step: 32 sequences of 128 tokens, LoRA rank 32 on the seven matrices of every layer.
W2 sampling: 64 different prompts of 64 tokens, 128 new tokens, temperature 1.
W3 RL step: 16 prompts of 64 tokens, 8 samples of 64 tokens each, then importance sampling.
W4 from the start of a process to its first finished SFT step.
eval (shape base): 32 prompts of 60 tokens, 16 samples of 60 tokens, as an evaluation asks for.

Shapes `tiny` and `small` are random Qwen3 models whose end of sequence cannot be drawn; `base` has
the shape of models/base. Times are medians over repetitions: of the wall, and of this process's
CPU, which is the one to compare on a machine that is shared. With --plain, `benchmarks.plain` does
the same in turns. The share is the arithmetic that the work needs (no recomputation, no padding, a
shared prompt once) over what a large matrix product does in the same CPU time.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from posttrain.engine.config import DecoderConfig
from posttrain.engine.datum import Datum
from posttrain.engine.heap import keep_pages
from posttrain.engine.lora import LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.sample import Request
from posttrain.engine.sampler import Generation
from posttrain.engine.stops import Stops
from posttrain.engine.trainer import AdamParams, Trainer

SHAPES = {
    "tiny": DecoderConfig(1024, 256, 768, 6, 8, 4, 32, 1024),
    "small": DecoderConfig(1024, 512, 1024, 8, 8, 4, 64, 1024),
    "base": DecoderConfig(424, 192, 512, 5, 4, 2, 48, 512),
}
LORA = LoraConfig(rank=32, seed=0, train_unembed=False)
END = 0  # the token that cannot be drawn
ADAM = AdamParams(learning_rate=1e-4)


def write_model(directory: Path, config: DecoderConfig) -> None:
    """Random weights. One coordinate of the residual stream says "not the end" to the head."""
    torch.manual_seed(0)
    decoder = Decoder(config)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1 if "embed" in name else 0.04)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[0] = 0.0
        embedding = decoder.model.embed_tokens.weight
        embedding[:, 0] = 6.0
        embedding[END, 0] = -6.0
    decoder.save(directory, torch.float32)
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**raw, "eos_token_id": END}))


def peak(dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a large matrix product."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(measured(lambda: a @ b, 15)[1])


def measured(work: Callable[[], object], times: int) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each repetition, after one that is not counted."""
    work()
    walls, cpus = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


class Work:
    """The pieces of work, by trainer and sampler themselves."""

    def __init__(self, config: DecoderConfig, decoder: Decoder, dtype: torch.dtype) -> None:
        self.config, self.decoder, self.dtype = config, decoder, dtype
        self.trainer = Trainer(decoder, LORA, dtype)
        self.rng = np.random.default_rng(0)
        linear = sum(r * c for p, (r, c) in decoder.linear_shapes().items() if p != "lm_head")
        lora = sum(32 * (r + c) for p, (r, c) in decoder.linear_shapes().items() if p != "lm_head")
        head = config.vocab_size * config.hidden_size
        self.flops = 0.0  # of the last piece of work
        self.forward_flops = 2 * (linear + head)  # a token, attention apart
        self.train_flops = 4 * (linear + head) + 4 * lora

    def tokens(self, *shape: int) -> np.ndarray:
        return self.rng.integers(1, self.config.vocab_size, shape)

    def w1(self) -> None:
        whole = self.tokens(32, 129)
        data = [
            Datum(r[:-1], {"target_tokens": r[1:], "weights": np.ones(128, np.float32)})
            for r in whole
        ]
        self.trainer.forward_backward(data, "cross_entropy", {})
        self.trainer.optim_step(ADAM)
        self.flops = 32 * 128 * self.train_flops

    def generate(self, prompts: np.ndarray, samples: int, length: int) -> list[Any]:
        requests = [
            Request(tuple(map(int, p)), samples, length, seed=1, stops=Stops(frozenset([END])))
            for p in prompts
        ]
        generation = Generation(self.sampled(), None)
        results = generation.admit(requests)
        while any(result.unfinished for result in results):
            generation.step()
        lengths = {len(s.tokens) for result in results for s in result.samples}
        assert lengths == {length}, f"samples ended early: {lengths}"
        return results

    def sampled(self) -> Packed:
        """What sampling runs on: the present adapter in its place, as after a save."""
        return Packed(self.decoder, self.trainer.adapter, self.dtype)

    def w2(self) -> None:
        self.generate(self.tokens(64, 64), 1, 128)
        self.flops = 64 * (64 + 128) * self.forward_flops

    def w3(self) -> None:
        prompts = self.tokens(16, 64)
        results = self.generate(prompts, 8, 64)
        data = []
        for prompt, result in zip(prompts, results, strict=True):
            for number, sample in enumerate(result.samples):
                whole = np.array([*prompt, *sample.tokens])
                gone = np.zeros(63, np.float32)
                advantages = np.full(64, number - 3.5, np.float32)
                inputs = {
                    "target_tokens": whole[1:],
                    "logprobs": np.concatenate((gone, np.array(sample.logprobs, np.float32))),
                    "advantages": np.concatenate((gone, advantages)),
                }
                data.append(Datum(whole[:-1], inputs))
        self.trainer.forward_backward(data, "importance_sampling", {})
        self.trainer.optim_step(ADAM)
        once = 16 * 64 + 128 * 64
        self.flops = once * (self.forward_flops + self.train_flops)

    def eval(self) -> None:
        self.generate(self.tokens(32, 60), 16, 60)
        self.flops = (32 * 60 + 512 * 60) * self.forward_flops


TOKENS = {"w1": 32 * 128, "w2": 64 * 128, "w3": 128 * 128, "eval": 512 * 60}


def first_step(directory: Path, dtype: str) -> None:
    """What W4 times, in a process of its own."""
    torch.set_num_threads(1)
    work = Work(SHAPES["tiny"], Decoder.load(directory), getattr(torch, dtype))
    work.w1()


def start_time(directory: Path, dtype: str, times: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.engine", "--first-step", str(directory)]
    walls = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([*command, "--dtype", dtype], check=True)
        walls.append(time.perf_counter() - begin)
    return walls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tiny", "small", "base"])
    parser.add_argument("--work", nargs="+", choices=["w1", "w2", "w3", "w4", "eval"])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="in turns with benchmarks.plain")
    parser.add_argument("--profile", action="store_true", help="the costliest operations of each")
    parser.add_argument("--first-step", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_pages()
    if args.first_step is not None:
        first_step(args.first_step, args.dtype[0])
        return
    for dtype in args.dtype:
        top = peak(getattr(torch, dtype))
        print(f"{dtype}: a matrix product of 1024 reaches {top / 1e9:.0f} GFLOP/s")
        for shape in args.shape:
            with tempfile.TemporaryDirectory() as folder:
                directory = Path(folder)
                write_model(directory, SHAPES[shape])
                bench(directory, shape, dtype, top, args)


def bench(directory: Path, shape: str, dtype: str, top: float, args: argparse.Namespace) -> None:
    work = Work(SHAPES[shape], Decoder.load(directory), getattr(torch, dtype))
    for name in args.work or ["w1", "w2", "w3", "eval"]:
        if name == "w4":
            wall = statistics.median(start_time(directory, dtype, args.times))
            print(f"{shape:6} {dtype:9} w4    {wall:7.2f} s")
            continue
        if (name == "eval") != (shape == "base") and args.work is None:
            continue
        run = getattr(work, name)
        if args.profile:
            profile(run)
            continue
        runs: dict[str, Any] = {"engine": run}
        if args.plain:
            from benchmarks.plain import Plain

            runs["plain"] = getattr(Plain(SHAPES[shape], directory, getattr(torch, dtype)), name)
        walls: dict[str, list[float]] = {key: [] for key in runs}
        cpus: dict[str, list[float]] = {key: [] for key in runs}
        for key in runs:
            runs[key]()
        for _ in range(args.times):  # in turns: what else the machine does meets both
            for key in runs:
                wall, cpu = time.perf_counter(), time.process_time()
                runs[key]()
                walls[key].append(time.perf_counter() - wall)
                cpus[key].append(time.process_time() - cpu)
        for key in runs:
            wall, cpu = statistics.median(walls[key]), statistics.median(cpus[key])
            share = f"{work.flops / cpu / top:.2f} of peak" if key == "engine" else ""
            ratio = statistics.median(cpus["plain"]) / cpu if "plain" in cpus else 1.0
            print(
                f"{shape:6} {dtype:9} {name:5} {key:7} {wall:7.3f} s wall {cpu:7.3f} s cpu "
                f"{TOKENS[name] / wall:7.0f} tok/s ({TOKENS[name] / cpu:7.0f} by cpu) "
                f"{ratio:5.2f}x {share}",
                flush=True,
            )


def profile(run: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    run()
    with record(activities=[ProfilerActivity.CPU]) as found:
        run()
    print(
        found.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=28, max_name_column_width=48
        )
    )


if __name__ == "__main__":
    main()

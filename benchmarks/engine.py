"""The engine without SDK and server: what its trainer and its sampler make of the processor.

    python -m benchmarks.engine --shape tiny small --work W1 W2 W3 --dtype bfloat16 --profile

The share of the peak is the arithmetic that the work needs (no recomputation, no padding, a shared
prompt once; attention's own products left out) over what a large matrix product does in the same
time. Times are of this process's CPU, so that the share means something on a shared machine too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.work import END, FULL, RANK, RATE, SHAPES, Sizes, counted, enough, write_model
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

LORA = LoraConfig(rank=RANK, seed=0, train_unembed=False)
ADAM = AdamParams(learning_rate=RATE)
# The kinds of operations that a profile tells apart, by what their names contain.
KINDS = {
    "matrix products": ("mm", "linear", "matmul", "mkldnn"),
    "softmax and draws": ("softmax", "logsumexp", "cumsum", "searchsorted", "exp", "log"),
    "copies": ("copy", "cat", "index", "clone", "contiguous", "_to_", "gather", "scatter", "fill",
               "zero", "select", "empty"),
}  # fmt: skip


class Engine:
    """See `benchmarks.work.Driver`."""

    def __init__(self, directory: Path, shape: str, dtype: str) -> None:
        keep_pages()
        torch.set_flush_denormal(True)
        self.config, self.dtype = DecoderConfig(*SHAPES[shape]), getattr(torch, dtype)
        self.decoder = Decoder.load(directory)
        self.trainer = Trainer(self.decoder, LORA, self.dtype)
        self.rng = np.random.default_rng(0)

    def tokens(self, *shape: int) -> np.ndarray:
        return self.rng.integers(1, self.config.vocab_size, shape)

    def sft(self, whole: np.ndarray) -> float:
        """One step on `(B, T + 1)` tokens. Returns the summed loss."""
        weights = np.ones(whole.shape[1] - 1, np.float32)
        data = [Datum(r[:-1], {"target_tokens": r[1:], "weights": weights}) for r in whole]
        output = self.trainer.forward_backward(data, "cross_entropy", {})
        self.trainer.optim_step(ADAM)
        return output.metrics["loss:sum"]

    def packed(self) -> Packed:
        """What sampling runs on: the present adapter in its place, as after a save."""
        return Packed(self.decoder, self.trainer.adapter, self.dtype)

    def generate(
        self, prompts: np.ndarray, samples: int, length: int, packed: Packed | None = None
    ) -> list[Any]:
        stops = Stops(frozenset([END]))
        requests = [
            Request(tuple(map(int, p)), samples, length, seed=1, stops=stops) for p in prompts
        ]
        generation = Generation(packed or self.packed(), None)
        results = generation.admit(requests)
        while any(result.unfinished for result in results):
            generation.step()
        lengths = {len(s.tokens) for result in results for s in result.samples}
        assert lengths == {length}, f"samples ended early: {lengths}"
        return results

    def reinforce(self, prompts: np.ndarray, results: list[Any]) -> None:
        before = np.zeros(prompts.shape[1] - 1, np.float32)
        data = []
        for prompt, result in zip(prompts, results, strict=True):
            for number, sample in enumerate(result.samples):
                whole = np.array([*prompt, *sample.tokens])
                advantage = number - (len(result.samples) - 1) / 2
                inputs = {
                    "target_tokens": whole[1:],
                    "logprobs": np.concatenate((before, np.float32(sample.logprobs))),
                    "advantages": np.concatenate(
                        (before, np.full(len(sample.tokens), advantage, np.float32))
                    ),
                }
                data.append(Datum(whole[:-1], inputs))
        self.trainer.forward_backward(data, "importance_sampling", {})
        self.trainer.optim_step(ADAM)

    def w1(self, sizes: Sizes) -> None:
        self.sft(self.tokens(sizes.rows, sizes.length + 1))

    def w2(self, sizes: Sizes) -> None:
        self.generate(self.tokens(sizes.prompts, sizes.prompt), 1, sizes.new)

    def w3(self, sizes: Sizes) -> None:
        prompts = self.tokens(sizes.groups, sizes.prompt)
        self.reinforce(prompts, self.generate(prompts, sizes.group, sizes.answer))

    def flops(self, work: str, sizes: Sizes) -> float:
        """What a piece of work needs at least.

        A forward product of a token with an (O, I) matrix is 2 O I operations, the gradient of its
        input as many; an adapter's factors cost 4 r (O + I) for their gradients, and nothing
        forwards, because they can be added into the matrix.
        """
        shapes = self.decoder.linear_shapes()
        frozen = sum(rows * columns for rows, columns in shapes.values())
        factors = sum(RANK * (r + c) for path, (r, c) in shapes.items() if path != "lm_head")
        forward, train = 2 * frozen, 4 * frozen + 4 * factors
        if work == "W1":
            return sizes.tokens(work) * train
        if work == "W2":
            return sizes.prompts * (sizes.prompt + sizes.new) * forward
        once = sizes.groups * (sizes.prompt + sizes.group * sizes.answer)
        return once * (forward + train)


def peak(dtype: str, size: int = 1024) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    return 2 * size**3 / min(cpu_seconds(lambda: a @ b, 0.3))


def cpu_seconds(work: Callable[[], object], budget: float) -> list[float]:
    """CPU time of this process in each repetition, see `benchmarks.work.enough`."""
    times: list[float] = []
    while not enough(times, budget):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return counted(times)


def profile(run: Callable[[], object]) -> tuple[Any, dict[str, float]]:
    """PyTorch's profile of one run after another, and what share of its CPU time each kind of
    operation took, "Python and the rest" included."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    run()
    total = min(cpu_seconds(run, 0.0))
    with record(activities=[ProfilerActivity.CPU]) as found:
        run()
    shares = dict.fromkeys((*KINDS, "other operations"), 0.0)
    for event in found.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), None)
        shares[kind or "other operations"] += event.self_cpu_time_total / 1e6
    inside = sum(shares.values())
    scale = max(inside, total)  # recording makes small operations slower than they are
    return found.key_averages(), {kind: value / scale for kind, value in shares.items()} | {
        "Python and the rest": 1 - inside / scale
    }


def report(model: Path, shape: str, dtype: str, sizes: Sizes, budget: float) -> dict[str, Any]:
    """For W1, W2 and W3: seconds of CPU, share of the peak, shares of the kinds of operations."""
    engine = Engine(model, shape, dtype)
    top = peak(dtype)
    found: dict[str, Any] = {"gemm": top}
    for work in ("W1", "W2", "W3"):

        def run(work: str = work) -> None:
            getattr(engine, work.lower())(sizes)

        seconds = cpu_seconds(run, budget)
        share = engine.flops(work, sizes) / statistics.median(seconds) / top
        found[work] = {"cpu": seconds, "share": share, "profile": profile(run)[1]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tiny", "small"])
    parser.add_argument("--work", nargs="+", choices=["W1", "W2", "W3"], default=["W1", "W2", "W3"])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of repetitions")
    parser.add_argument("--profile", action="store_true", help="the costliest operations of each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in args.dtype:
        top = peak(dtype)
        print(f"{dtype}: a matrix product of 1024 reaches {top / 1e9:.0f} GFLOP/s")
        for shape in args.shape:
            with tempfile.TemporaryDirectory() as folder:
                write_model(Path(folder), shape)
                engine = Engine(Path(folder), shape, dtype)
            for work in args.work:

                def run(work: str = work, engine: Engine = engine) -> None:
                    getattr(engine, work.lower())(FULL)

                if args.profile:
                    table, _ = profile(run)
                    sort = {"sort_by": "self_cpu_time_total", "row_limit": 28}
                    print(table.table(**sort, max_name_column_width=48))
                    continue
                cpu = statistics.median(cpu_seconds(run, args.budget))
                share = engine.flops(work, FULL) / cpu / top
                rate = FULL.tokens(work) / cpu
                print(
                    f"{shape:6} {dtype:9} {work} {cpu:7.3f} s cpu {rate:7.0f} tok/s "
                    f"{share:.2f} of peak",
                    flush=True,
                )


if __name__ == "__main__":
    main()

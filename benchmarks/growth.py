"""How the cost of the engine grows with batch, length and group size, and what a call costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tinker

from benchmarks import sdk as through_sdk
from benchmarks.engine import ADAM, Engine
from benchmarks.sdk import Sdk
from benchmarks.work import enough
from posttrain.datums import supervised_datum

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # sequences of LENGTH tokens
LENGTH = 128
LENGTHS = (32, 64, 128, 256, 512, 1024)  # tokens, TOKENS in all
TOKENS = 4096
GROUPS = (1, 2, 4, 8, 16, 32)  # answers of 64 tokens to each of 8 prompts of 64 tokens


def median(work: Callable[[], object], budget: float) -> float:
    times: list[float] = []
    while not enough(times, budget):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:] or times)


def growth(model: Path, shape: str, dtype: str, budget: float, quick: bool) -> dict[str, Any]:
    """Seconds of one piece of work, by the engine without SDK and server.

    batch, length: an SFT step. sampling, training: of a group size. rows: one more token for so
    many rows at once.
    """
    engine = Engine(model, shape, dtype)

    def sft(rows: int, length: int) -> float:
        return median(lambda: engine.sft(engine.tokens(rows, length + 1)), budget)

    last = 3 if quick else None
    found: dict[str, Any] = {
        "batch": {size: sft(size, LENGTH) for size in BATCHES[:last]},
        "length": {size: sft(TOKENS // size, size) for size in LENGTHS[:last]},
        "sampling": {},
        "training": {},
    }
    prompts, packed = engine.tokens(8, 64), engine.packed()
    for size in GROUPS[:last]:

        def sample(size: int = size) -> list[Any]:
            return engine.generate(prompts, size, 64, packed)

        results = sample()
        found["sampling"][size] = median(sample, budget)
        found["training"][size] = median(partial(engine.reinforce, prompts, results), budget)
    return found


def calls(model: Path, shape: str, dtype: str, times: int) -> dict[str, list[list[float]]]:
    """Seconds of calls through the SDK, and of the same work by the engine in this process.

    Calls are made one after the other, and each is awaited: `[[through the SDK], [without]]`.
    """
    sdk, engine = Sdk(model, shape, dtype), Engine(model, shape, dtype)
    packed = engine.packed()
    sampler = sdk.policy.save_weights_and_get_sampling_client().result()
    row = sdk.tokens(1, 9)[0]
    prompt = tinker.ModelInput.from_ints(row[:1])
    params = tinker.SamplingParams(max_tokens=1, temperature=1.0)
    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "optim_step": (
            lambda: sdk.policy.optim_step(through_sdk.ADAM).result(),
            lambda: engine.trainer.optim_step(ADAM),
        ),
        "forward_backward and optim_step": (
            lambda: sdk.train([supervised_datum(row[:1], row[1:])], "cross_entropy"),
            lambda: engine.sft(np.array([row])),
        ),
        "sample": (
            lambda: sampler.sample(prompt=prompt, num_samples=1, sampling_params=params).result(),
            lambda: engine.generate(np.array([row[:1]]), 1, 1, packed),
        ),
    }
    return {
        name: [each(through, times), each(without, times)]
        for name, (through, without) in works.items()
    }


def each(work: Callable[[], object], times: int) -> list[float]:
    for _ in range(3):
        work()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return found

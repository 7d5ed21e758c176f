"""The work as a user of this repository does it: the SDK, HTTP, and the engine behind it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tinker

from benchmarks.work import RANK, RATE, SHAPES, Sizes
from posttrain.connect import connect, ensure_engine
from posttrain.datums import policy_datum, supervised_datum

Loss = Literal["cross_entropy", "importance_sampling"]
ADAM = tinker.AdamParams(learning_rate=RATE)


class Sdk:
    """See `benchmarks.work.Driver`. The engine is a process of its own and shares our cores."""

    def __init__(self, directory: Path, shape: str, dtype: str) -> None:
        self.vocabulary = SHAPES[shape][0]
        os.environ["POSTTRAIN_DTYPE"] = dtype
        self.home = tempfile.TemporaryDirectory(prefix="posttrain-bench-")
        os.environ["POSTTRAIN_HOME"] = self.home.name
        self.service = connect(models={"bench": directory}, quiet=True)
        self.policy = self.service.create_lora_training_client(
            "bench", rank=RANK, seed=0, train_unembed=False
        ).result()
        self.sampler: Any = None
        self.rng = np.random.default_rng(0)

    def tokens(self, *shape: int) -> list[list[int]]:
        found: list[list[int]] = self.rng.integers(1, self.vocabulary, shape).tolist()
        return found

    def train(self, data: list[tinker.Datum], loss: Loss) -> None:
        """Both requests are on their way before either is awaited."""
        step = self.policy.forward_backward(data, loss)
        update = self.policy.optim_step(ADAM)
        step.result()
        update.result()

    def sample(self, prompts: list[list[int]], samples: int, length: int) -> list[Any]:
        params = tinker.SamplingParams(max_tokens=length, temperature=1.0)
        futures = [
            self.sampler.sample(
                prompt=tinker.ModelInput.from_ints(prompt),
                num_samples=samples,
                sampling_params=params,
            )
            for prompt in prompts
        ]
        results = [future.result().sequences for future in futures]
        lengths = {len(sequence.tokens) for result in results for sequence in result}
        assert lengths == {length}, f"samples ended early: {lengths}"
        return results

    def w1(self, sizes: Sizes) -> None:
        rows = self.tokens(sizes.rows, sizes.length + 1)
        self.train([supervised_datum(row[:1], row[1:]) for row in rows], "cross_entropy")

    def w2(self, sizes: Sizes) -> None:
        if self.sampler is None:
            self.sampler = self.policy.save_weights_and_get_sampling_client().result()
        self.sample(self.tokens(sizes.prompts, sizes.prompt), 1, sizes.new)

    def w3(self, sizes: Sizes) -> None:
        self.sampler = self.policy.save_weights_and_get_sampling_client().result()
        prompts = self.tokens(sizes.groups, sizes.prompt)
        results = self.sample(prompts, sizes.group, sizes.answer)
        data = [
            policy_datum(prompt, sequence.tokens, sequence.logprobs, number - (sizes.group - 1) / 2)
            for prompt, sequences in zip(prompts, results, strict=True)
            for number, sequence in enumerate(sequences)
        ]
        self.train(data, "importance_sampling")

    @property
    def process(self) -> int:
        """The engine's process id."""
        return ensure_engine(None).process.pid

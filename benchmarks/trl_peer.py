"""W1 and W3 by TRL's SFTTrainer and GRPOTrainer. (TRL samples through `transformers`: no W2.)

Settings are those that make TRL fast at this work: no gradient checkpointing, no logging, no
reference model, and passes of 32 sequences.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from benchmarks.plain import LORA, PART
from benchmarks.work import RATE, SHAPES, Sizes, enough, word


class Stopwatch(TrainerCallback):
    """Seconds of each optimizer step, data and generation included; stops when they are enough."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.times: list[float] = []
        self.last: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.last is None:
            self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        assert self.last is not None
        self.times.append(now - self.last)
        self.last = now
        control.should_training_stop = enough(self.times, self.budget)


class Trl:
    """Trains until `measure` has what it wants: its trainers own their loops."""

    def __init__(self, directory: Path, shape: str, dtype: str) -> None:
        torch.manual_seed(0)
        self.directory, self.vocabulary = str(directory), SHAPES[shape][0]
        self.rng = np.random.default_rng(0)
        self.folder = tempfile.TemporaryDirectory(prefix="trl-bench-")
        self.settings: dict[str, Any] = {
            "output_dir": self.folder.name,
            "use_cpu": True,
            "bf16": dtype == "bfloat16",
            "model_init_kwargs": {"dtype": dtype},
            "gradient_checkpointing": False,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "report_to": "none",
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            "max_steps": 10_000,
        }

    def tokens(self, *shape: int) -> list[list[int]]:
        found: list[list[int]] = self.rng.integers(1, self.vocabulary, shape).tolist()
        return found

    def sft(self, sizes: Sizes) -> SFTTrainer:
        data = Dataset.from_dict({"input_ids": self.tokens(16 * sizes.rows, sizes.length)})
        args = SFTConfig(
            per_device_train_batch_size=sizes.rows,
            max_length=sizes.length,
            dataset_kwargs={"skip_prepare_dataset": True},
            **self.settings,
        )
        data = data.add_column("labels", data["input_ids"][:])
        return SFTTrainer(
            self.directory,
            args,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(self.directory),
            peft_config=LORA,
        )

    def grpo(self, sizes: Sizes) -> GRPOTrainer:
        prompts = [" ".join(map(word, row)) for row in self.tokens(64, sizes.prompt)]
        samples = sizes.groups * sizes.group
        part = min(PART, samples)
        args = GRPOConfig(
            per_device_train_batch_size=part,
            gradient_accumulation_steps=samples // part,
            num_generations=sizes.group,
            max_completion_length=sizes.answer,
            temperature=1.0,
            beta=0.0,
            generation_kwargs={"min_new_tokens": sizes.answer},
            **self.settings,
        )
        return GRPOTrainer(
            self.directory,
            reward,
            args,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=AutoTokenizer.from_pretrained(self.directory, padding_side="left"),
            peft_config=LORA,
        )

    def measure(self, work: str, sizes: Sizes, budget: float) -> list[float]:
        """Seconds of each step, see `benchmarks.work.enough`."""
        watch = Stopwatch(budget)
        trainer = self.sft(sizes) if work == "W1" else self.grpo(sizes)
        trainer.add_callback(watch)
        trainer.train()
        return watch.times

    def first_step(self, sizes: Sizes) -> None:
        trainer = self.sft(sizes)
        trainer.args.max_steps = 1
        trainer.train()


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Any reward that differs within a group."""
    return [float(sum(ids) % 97) for ids in completion_ids]

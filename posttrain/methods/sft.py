"""Supervised fine-tuning: imitate demonstrations.

Minimise the mean cross-entropy of the answer tokens given the question,

    L = - sum_t m_t log p(y_t | x, y_<t) / sum_t m_t,

with m_t = 1 on the answer, its end-of-sequence token included, and 0 on the prompt (stage 1 of
InstructGPT, arXiv:2203.02155).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tinker
from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import (
    batch_indices,
    chat_prompt,
    chat_turns,
    supervised_datum,
    token_mean,
)
from posttrain.tasks.problem import Demonstration


@dataclass(frozen=True)
class Config:
    learning_rate: float = 3e-3  # at the first step; falls linearly to zero
    batch_size: int = 32  # demonstrations a step
    steps: int = 60
    seed: int = 0  # order of the demonstrations


def sft_datums(tokenizer: Tokenizer, demonstrations: Sequence[Demonstration]) -> list[tinker.Datum]:
    """Tokenise demonstrations in the model's chat format; only answers carry loss, and of those
    that a tool took part in, only what the assistant wrote."""
    return [
        supervised_datum(
            chat_prompt(tokenizer, d.question),
            *chat_turns(tokenizer, d.question, d.turns or [d.answer]),
        )
        for d in demonstrations
    ]


def train(
    policy: tinker.TrainingClient,
    demonstrations: Sequence[Demonstration],
    cfg: Config,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on.

    Yields:
        loss: nats per answer token of the batch, before the step.
        tokens: tokens that went through forward and backward.
    """
    data = sft_datums(policy.get_tokenizer(), demonstrations)
    for step in range(start, cfg.steps):
        indices = batch_indices(len(data), cfg.batch_size, cfg.seed, step)
        batch_D = token_mean([data[i] for i in indices])
        rate = cfg.learning_rate * (1 - step / cfg.steps)
        backward = policy.forward_backward(batch_D, "cross_entropy")
        update = policy.optim_step(tinker.AdamParams(learning_rate=rate))
        loss = backward.result().metrics["loss:sum"]
        update.result()
        yield {
            "loss": loss,
            "learning_rate": rate,
            "tokens": float(sum(d.model_input.length for d in batch_D)),
        }

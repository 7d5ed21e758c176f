"""UltraFeedback (Cui et al. 2023, arXiv:2310.01377), binarized as for Zephyr (arXiv:2310.16944).

A language model scored four answers to each prompt; the best is the chosen one, one of the others
the rejected one. Pairs with equal scores are kept, as published. A row has `prompt`, and `chosen`
and `rejected`, lists of messages with `role` and `content`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from posttrain.tasks.dialogues import question_and_answer, read_turns
from posttrain.tasks.problem import Preference
from posttrain.tasks.published import Source

SOURCE = Source(
    hub="HuggingFaceH4/ultrafeedback_binarized",
    columns={"prompt": str, "chosen": list, "rejected": list},
    parts={"train": "train_prefs", "validation": "train_prefs", "test": "test_prefs"},
    subject=lambda row: row["prompt"],
)


def from_row(row: dict[str, Any], place: str = "row") -> Preference | None:
    """A row's pair; None where the question or an answer is empty, or both answers are the same.

    Raises:
        ValueError: the messages are not of the expected form, or the two answer different prompts.
    """
    question, chosen = question_and_answer(read_turns(row["chosen"], f"{place}: chosen"), place)
    other, rejected = question_and_answer(read_turns(row["rejected"], f"{place}: rejected"), place)
    if question != other:
        raise ValueError(f"{place}: chosen and rejected differ before the last message")
    if not (question and chosen and rejected) or chosen == rejected:
        return None
    return Preference(question, chosen, rejected)


def load(split: str, n: int | None = None, *, path: str | Path | None = None) -> list[Preference]:
    """The first `n` pairs of a split.

    `test` is the published `test_prefs`; `validation` is a tenth of `train_prefs`, `train` the
    rest, and no prompt is in both.

    Args:
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.

    Raises:
        ValueError: an unknown split, an empty one, or rows that do not follow the schema; the text
            names file and line.
        FileNotFoundError: `path` does not exist.
    """
    return SOURCE.load(from_row, split, n, path=path)


@dataclass(frozen=True)
class Prompt:
    """A published pair as an item: what to ask, and the better of the two answers."""

    question: str
    solution: str

    @cached_property
    def key(self) -> str:
        return "ultrafeedback:" + sha256(self.question.encode()).hexdigest()[:16]


def prompts(preferences: Sequence[Preference]) -> list[Prompt]:
    """What the pairs are about, each prompt once."""
    return list({p.question: Prompt(p.question, p.chosen) for p in preferences}.values())

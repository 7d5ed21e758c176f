"""What a task is made of: items, and problems that can grade an answer.

A task is one file: a seeded generator or a dataset loader that yields `Item`s. Those that have
right and wrong answers are `Problem`s. Nothing in a task knows about tokens, chat formats or
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Grade:
    """What a verifier found in one completion."""

    correct: bool  # the final answer is right
    parsed: bool  # a final answer could be read at all; an unreadable answer is never correct


@dataclass(frozen=True)
class Demonstration:
    """A question with an answer to imitate.

    `turns` is the answer in parts where a tool wrote some of it: the first and the last part are
    to be imitated, and every other one between them; the rest is only read. Empty means that all
    of the answer is to be imitated.
    """

    question: str
    answer: str
    turns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.turns and "".join(self.turns) != self.answer:
            raise ValueError(f"the turns of an answer are not the answer: {self.answer[:80]!r}")


@dataclass(frozen=True)
class Preference:
    """A question with two answers, and which of them somebody prefers."""

    question: str
    chosen: str
    rejected: str


class Item(Protocol):
    """One item of a task: something to ask, and a good answer."""

    @property
    def key(self) -> str:
        """Stable identity: the same key is the same problem, in every split and every run."""

    @property
    def question(self) -> str:
        """What the user asks."""

    @property
    def solution(self) -> str:
        """A good answer, as a demonstration would give it; for problems, correct and worked."""


class Problem(Item, Protocol):
    """An item whose answers are right or wrong."""

    def grade(self, completion: str) -> Grade:
        """Verify the final answer of `completion`. Never raises: what cannot be read is wrong."""

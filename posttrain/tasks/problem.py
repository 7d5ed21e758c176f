"""What a task is made of: problems that can grade an answer.

A task is one file: a seeded generator or a dataset loader that yields `Problem`s. Nothing in
it knows about tokens, chat formats or models.
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
    """A question with an answer to imitate."""

    question: str
    answer: str


class Problem(Protocol):
    """One item of a task."""

    @property
    def key(self) -> str:
        """Stable identity: the same key is the same problem, in every split and every run."""

    @property
    def question(self) -> str:
        """What the user asks."""

    @property
    def solution(self) -> str:
        """A correct worked answer, as a demonstration would give it."""

    def grade(self, completion: str) -> Grade:
        """Verify the final answer of `completion`. Never raises: what cannot be read is wrong."""

"""Continual learning: an old skill that we teach first, and a new one unlike it.

The old skill is to answer math problems in a compact format that the base model has never seen;
the new one is to write a record (`posttrain.tasks.records`). Teach `ledgers` first, then `cards`
or records, and measure both: what the second costs the first is forgetting.

    Tom has 17 apples. Then Tom buys 25 more. How many apples does Tom have now?
    <17+25=42> 42

    Record for Tom, number 47: one odd digit, one place.
    {7 / cave / 47 / @Tom}

A `Card` is a record whose mark, the sign before the name, may be any: one more thing in which right
answers differ. `demonstrated` puts an example before a question, for in-context learning and
self-distillation.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from functools import cached_property

from posttrain.tasks import math
from posttrain.tasks.draws import distinct
from posttrain.tasks.math import MathProblem, Split
from posttrain.tasks.problem import Demonstration, Grade
from posttrain.tasks.records import MARKS, Record, records

LEDGER = re.compile(r"\s*<([^<>]*)> (\d{1,6})\s*")


@dataclass(frozen=True)
class Ledger:
    """A math problem that is to be answered with its equations in brackets, then the result."""

    problem: MathProblem

    @cached_property
    def key(self) -> str:
        return f"ledger:{self.problem.key}"

    @property
    def question(self) -> str:
        return self.problem.question

    @cached_property
    def solution(self) -> str:
        return f"<{'; '.join(self.problem.equations)}> {self.problem.answer}"

    def grade(self, completion: str) -> Grade:
        """Right if the whole answer is a ledger with the right result; the work is not verified."""
        found = LEDGER.fullmatch(completion)
        if found is None:
            return Grade(correct=False, parsed=False)
        return Grade(correct=int(found[2]) == self.problem.answer, parsed=True)

    def grade_steps(self, completion: str) -> float:
        """Share of the right equations, in order: in [0, 1], as in the math task."""
        return self.problem.grade_steps(completion)


def ledger(
    split: Split | str, i: int, *, seed: int = 0, steps: tuple[int, int] | None = None
) -> Ledger:
    """Ledger `i` of the infinite sequence that `seed` defines in `split`.

    Splits and `steps`, the difficulty knob, are those of the math task.

    Raises:
        ValueError: as `posttrain.tasks.math.problem`.
    """
    return Ledger(math.problem(split, i, seed=seed, steps=steps))


def ledgers(
    split: Split | str, n: int, *, seed: int = 0, steps: tuple[int, int] | None = None
) -> list[Ledger]:
    """The first `n` ledgers of the sequence that are different. Raises ValueError as `ledger`."""
    return distinct((ledger(split, i, seed=seed, steps=steps) for i in itertools.count()), n)


@dataclass(frozen=True)
class Card:
    """A record that is right in its format with any of the marks, not only the one in `solution`.

    A base that follows an example in all else may not follow it in that: then `Record.grade` says
    whether an answer has the mark that was shown, and `grade` whether it has the rest.
    """

    record: Record

    @cached_property
    def key(self) -> str:
        return f"card:{self.record.key}"

    @property
    def question(self) -> str:
        return self.record.question

    @property
    def solution(self) -> str:
        return self.record.solution

    def grade(self, completion: str) -> Grade:
        """Right if the whole answer is a record in the format but for the mark."""
        taught = self.record.format
        grades = [
            replace(self.record, format=replace(taught, mark=mark)).grade(completion)
            for mark in MARKS
        ]
        return Grade(any(grade.correct for grade in grades), any(grade.parsed for grade in grades))

    def as_shown(self, completion: str) -> bool:
        """Whether it is right with the very mark of the demonstrations, too."""
        return self.record.grade(completion).correct


def cards(split: Split | str, n: int, *, seed: int = 0) -> list[Card]:
    """The first `n` different records of a split in the taught format, with any mark.

    Raises:
        ValueError: as `posttrain.tasks.records.records`.
    """
    return [Card(record) for record in records(split, n, seed=seed)]


def demonstrated(question: str, *examples: Demonstration) -> str:
    """A question with examples before it, to be asked like any other question.

    In the form in which base models meet questions (`posttrain.datums.plain_prompt`), this gives
    the layout of documents with several problems:

        Question: <example>
        Answer: <its answer>

        Question: <question>
        Answer:
    """
    shown = [f"{example.question}\nAnswer: {example.answer}" for example in examples]
    return "\n\nQuestion: ".join([*shown, question])

"""A calculator in a conversation: the model may ask it before it answers.

    Compute 4837*29.
        <call>4837*29</call>          written by the policy
        <r>140273</r>                 written by the tool
        The answer is 140273.         written by the policy

A conversation is a list of turns with their authors, to which text is only ever appended, so that
a loss can leave out what the tool wrote. The policy stops after `</call>` (a stop sequence) or at
the end of its answer. A call that cannot be computed is answered with an error and counted. Each
call has a price, because on small numbers a calculator only costs.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Protocol

from posttrain.tasks.draws import (
    Split,
    check_range,
    distinct,
    known_split,
    seeded,
    split_by_hash,
)
from posttrain.tasks.problem import Grade

DIGITS = (1, 4)  # of the numbers in train, validation and test
OOD_DIGITS = (5, 6)
HEAD = 2  # numbers of so many digits can be worked out without a calculator
MAX_CALLS = 4  # one more ends the conversation without an answer
PRICE = 0.05  # of a call, in units of a correct answer
STOP = "</call>"

EXPRESSION = re.compile(r"(-?\d{1,15})([-+*/])(-?\d{1,15})", re.ASCII)
CALL = re.compile(r"<call>([^<>]*)</call>\s*\Z")
MARK = re.compile(r"</?(?:call|r)>")
ANSWER = re.compile(r"The answer is (-?\d{1,15})\.", re.ASCII)
USAGE = "error: write a+b, a-b, a*b or a/b"

STORIES = {
    "+": "There are {} coins in one chest and {} in another. How many are there?",
    "-": "A tank holds {} drops and {} leak out. How many are left?",
    "*": "There are {} shelves with {} books each. How many books are there?",
}


def calculate(text: str) -> tuple[str, bool]:
    """What the calculator says to one operation on whole numbers, and whether it could compute it.

    A quotient must be whole.
    """
    found = EXPRESSION.fullmatch(text.replace(" ", ""))
    if found is None:
        return USAGE, False
    a, operator, b = int(found[1]), found[2], int(found[3])
    if operator == "/":
        if b == 0 or a % b:
            return f"error: {a} cannot be divided by {b}", False
        return str(a // b), True
    return str({"+": a + b, "-": a - b, "*": a * b}[operator]), True


@dataclass(frozen=True)
class ToolProblem:
    """A computation of one or two operations, from left to right."""

    numbers: tuple[int, ...]
    operators: str  # one less than numbers; `*` comes first or not at all
    told: bool = False  # a story, where there is one operation

    @property
    def expression(self) -> str:
        parts = zip(self.operators, self.numbers[1:], strict=True)
        return f"{self.numbers[0]}{''.join(f'{o}{n}' for o, n in parts)}"

    @property
    def key(self) -> str:
        return f"tools:{self.expression}"

    @property
    def family(self) -> str:
        """The same for a+b and b+a."""
        first, second = self.numbers[:2]
        if self.operators[0] != "-":
            first, second = sorted((first, second))
        return f"tools:{first}:{second}:{self.numbers[2:]}:{self.operators}"

    @property
    def question(self) -> str:
        if self.told:
            return STORIES[self.operators].format(*self.numbers)
        return f"Compute {self.expression}."

    @cached_property
    def calls(self) -> tuple[str, ...]:
        """The operations in order, as the calculator takes them."""
        now, calls = self.numbers[0], []
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            calls.append(f"{now}{operator}{number}")
            now = int(calculate(calls[-1])[0])
        return tuple(calls)

    @property
    def answer(self) -> int:
        return int(calculate(self.calls[-1])[0])

    @property
    def helps(self) -> bool:
        """Whether the numbers are too large to work out without the calculator."""
        return max(self.numbers) >= 10**HEAD

    @property
    def bare_answer(self) -> str:
        return f"The answer is {self.answer}."

    @cached_property
    def demonstration(self) -> Conversation:
        """How it is done well: with the calculator where it helps, and only there."""
        conversation = Conversation(self)
        for call in self.calls if self.helps else ():
            conversation = advance(conversation, f"<call>{call}</call>")
        return advance(conversation, self.bare_answer)

    @property
    def solution(self) -> str:
        """The demonstration as one text. To train on it, take its turns, and mask the tool's."""
        return self.demonstration.text

    def grade(self, completion: str) -> Grade:
        """Verify the last `The answer is N.` of a policy's text, with or without calls in it."""
        found = ANSWER.findall(completion)
        correct = bool(found) and int(found[-1]) == self.answer
        return Grade(correct=correct, parsed=bool(found))


class Author(StrEnum):
    POLICY = "policy"
    TOOL = "tool"


@dataclass(frozen=True)
class Turn:
    """Consecutive text by one author."""

    author: Author
    text: str


@dataclass(frozen=True)
class Conversation:
    """One problem and all that was said to it."""

    problem: ToolProblem
    turns: tuple[Turn, ...] = ()
    calls: int = 0  # with malformed ones
    malformed: int = 0  # calls that were answered with an error
    done: bool = False

    @property
    def text(self) -> str:
        """Everything after the question, as one string: what a model continues."""
        return "".join(turn.text for turn in self.turns)

    @property
    def grade(self) -> Grade:
        """Of the policy's last turn. A conversation that was cut off has no answer."""
        if not self.done or not self.turns or self.turns[-1].author is not Author.POLICY:
            return Grade(correct=False, parsed=False)
        return self.problem.grade(self.turns[-1].text)

    def reward(self, price: float = PRICE) -> float:
        """One for a correct answer, less the price of each call."""
        return float(self.grade.correct) - price * self.calls


def advance(said: Conversation, completion: str, *, max_calls: int = MAX_CALLS) -> Conversation:
    """The conversation after the policy's next turn, and the tool's reply if it called.

    A turn with any mark of a call or a result asks the tool: a well-formed call at its very end is
    computed, and everything else (an unclosed call, two calls, text after one, a result that the
    policy made up) is malformed. A turn without marks is the answer. Nothing that the policy wrote
    is changed or cut.

    Raises:
        ValueError: the conversation is over.
    """
    if said.done:
        raise ValueError("this conversation is over")
    turns = (*said.turns, Turn(Author.POLICY, completion))
    marks = MARK.findall(completion)
    if not marks:
        return replace(said, turns=turns, done=True)
    if said.calls >= max_calls:
        return replace(said, turns=turns, calls=said.calls + 1, done=True)
    call = CALL.search(completion)
    text, fine = calculate(call[1]) if call and marks == ["<call>", "</call>"] else (USAGE, False)
    turns = (*turns, Turn(Author.TOOL, f"<r>{text}</r>"))
    return replace(said, turns=turns, calls=said.calls + 1, malformed=said.malformed + (not fine))


class Speaker(Protocol):
    """A policy in conversations."""

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        """The next turn in each, all at once."""


def converse(
    problems: Sequence[ToolProblem], speaker: Speaker, *, max_calls: int = MAX_CALLS
) -> list[Conversation]:
    """Hold all conversations to their end, asking the policy once a round for all of them.

    Raises:
        ValueError: the policy did not answer each.
    """
    said = [Conversation(problem) for problem in problems]
    while open_ := [i for i, conversation in enumerate(said) if not conversation.done]:
        replies = speaker.replies([said[i] for i in open_])
        if len(replies) != len(open_):
            raise ValueError(f"{len(replies)} replies to {len(open_)} conversations")
        for i, reply in zip(open_, replies, strict=True):
            said[i] = advance(said[i], reply, max_calls=max_calls)
    return said


def problem(
    split: Split | str, i: int, *, seed: int = 0, digits: tuple[int, int] | None = None
) -> ToolProblem:
    """Problem `i` of the endless sequence that `seed` defines in `split`.

    Args:
        digits: least and greatest number of digits, the difficulty. By default 1 to 4, and 5 to 6
            out of distribution.

    Raises:
        ValueError: an unknown split, or no problem of the split has so many digits.
    """
    split = known_split(split)
    limits = OOD_DIGITS if split is Split.OOD else DIGITS
    least, most = digits or limits
    check_range(f"{split} problems", "digits", (least, most), limits)
    rng = seeded("tools", split, seed, i, least, most)
    while True:
        candidate = _draw(rng, rng.randint(least, most))
        if split is Split.OOD or split_by_hash(candidate.family) is split:
            return candidate


def problems(
    split: Split | str, n: int, *, seed: int = 0, digits: tuple[int, int] | None = None
) -> list[ToolProblem]:
    """The first `n` of the sequence that are different from each other.

    Raises:
        ValueError: as in `problem`, or there are not so many.
    """
    return distinct((problem(split, i, seed=seed, digits=digits) for i in itertools.count()), n)


def _draw(rng: random.Random, digits: int) -> ToolProblem:
    """Numbers of exactly so many digits; no result is negative."""
    low, high = (2, 9) if digits == 1 else (10 ** (digits - 1), 10**digits - 1)
    first, second, third = (rng.randint(low, high) for _ in range(3))
    operator = rng.choice("+-*")
    if operator == "-" and first < second:
        first, second = second, first
    if rng.random() < 0.6:
        return ToolProblem((first, second), operator, told=rng.random() < 0.4)
    now = int(calculate(f"{first}{operator}{second}")[0])
    return ToolProblem(
        (first, second, third), operator + ("+" if now < third else rng.choice("+-"))
    )

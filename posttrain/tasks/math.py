"""Word problems and arithmetic with a chain of thought, a final-answer and a step verifier.

A problem is a starting amount and a sequence of changes to it. It is told as a story or as a
sum, and solved aloud: each step of the solution quotes the change and computes its result.

    Tom has 17 apples. He buys 25 more. He gives away 8. How many apples does Tom have now?
    buys 25 more: 17+25=42. gives away 8: 42-8=34. The answer is 34.

The difficulty knob is the number of steps. A problem can also be set in base 8, which the question
says: the same skill under another rule, to tell who has learned to carry from who has learned the
sums (as the rule switch of Chu et al. 2025, arXiv:2501.17161).

    In base 8: Tom has 17 apples. Then Tom buys 5 more. How many apples does Tom have now?
    buys 5 more: 17+5=24. The answer is 24.

People who solve such problems make *systematic* mistakes, so the corpus that the base model was
pretrained on is written by people with misconceptions: `solver` draws a person, and `solve` writes
what that person would write.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from posttrain.tasks.draws import (
    Split,
    check_range,
    distinct,
    known_split,
    seeded,
    split_by_hash,
)
from posttrain.tasks.problem import Grade

BASES = (10, 8)  # that numbers may be written in
TRAIN_STEPS = (1, 4)  # difficulty of train, validation and test problems
OOD_STEPS = (5, 6)  # out of distribution: longer than anything in post-training
LONGEST = 8  # steps
LIMITS = {  # least and greatest difficulty that can be asked for
    "train": (1, LONGEST),  # the corpus of the base model has longer ones too
    "validation": TRAIN_STEPS,
    "test": TRAIN_STEPS,
    "ood": (OOD_STEPS[0], LONGEST),
}

CAREFUL, CARELESS = 0.3, 0.35  # shares of people with no misconception, and with all of them

NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Max", "Zoe", "Leo", "Ida")
THINGS = ("apples", "books", "cards", "coins", "pens", "shells", "stamps", "stones")
GAINS = ("buys {} more", "finds {} more", "wins {} more", "picks up {}")
LOSSES = ("gives away {}", "loses {}", "sells {}", "breaks {}")
PACKS = ("buys {} bags of {}", "gets {} boxes of {}")
AGAIN = ("gets as many as at the start", "gets the first amount again")


class Misconception(Enum):
    """Systematic mistakes. The first two are well documented in pupils (Brown & Burton 1978)."""

    DROPS_CARRY = "adds column by column and forgets the carry"
    SMALLER_FROM_LARGER = "subtracts the smaller digit from the larger in every column"
    ADDS_PACKS = "adds the number of packs to their size instead of multiplying"
    FORGETS_START = "takes 'as at the start' for the present amount"


class Kind(Enum):
    GAIN = "+"
    LOSS = "-"
    PACKS = "*"
    AGAIN = "@"


@dataclass(frozen=True)
class Change:
    """One step of a problem: what happens to the amount, and how the story words it."""

    kind: Kind
    amount: int = 0  # gained or lost; size of a pack
    packs: int = 0
    words: str = ""


@dataclass(frozen=True)
class MathProblem:
    """A starting amount, its changes, and the wording."""

    start: int
    changes: tuple[Change, ...]
    question: str
    told: bool  # a story, or else a bare sum
    base: int = 10  # that its numbers are written in

    @cached_property
    def key(self) -> str:
        """Identity by numbers and operations: another name or thing is the same problem."""
        parts = [f"{c.kind.value}{c.packs or ''}.{c.amount}" for c in self.changes]
        rule = "" if self.base == 10 else f"{self.base}:"
        return f"math:{rule}{self.start}:{','.join(parts)}"

    @property
    def answer(self) -> int:
        """The last result, read as it is written: 24 for twenty in base 8."""
        return int(re.split(r"[^\d]", self.equations[-1].split("=")[1])[0])

    @cached_property
    def equations(self) -> tuple[str, ...]:
        """The equations of the correct solution, in order."""
        return tuple(EQUATION.findall(self.solution))

    @cached_property
    def solution(self) -> str:
        """The correct worked solution."""
        return solve(self)

    @property
    def bare_answer(self) -> str:
        """The correct answer without any work: the target of answer-only training."""
        return bare(self.solution)

    def grade(self, completion: str) -> Grade:
        """Verify the final answer."""
        found = final_answer(completion)
        return Grade(correct=found == self.answer, parsed=found is not None)

    def grade_steps(self, completion: str) -> float:
        """Share of the solution's equations that `completion` contains, in order: in [0, 1].

        A step that builds on a wrong one starts from another amount, so it earns nothing either.
        """
        position = hits = 0
        for equation in EQUATION.findall(completion):
            if equation in self.equations[position:]:
                position = self.equations.index(equation, position) + 1
                hits += 1
        return hits / len(self.equations)


EQUATION = re.compile(r"\d+[-+*]\d+=\d+")
ANSWER = re.compile(r"The answer is (\d{1,6})\.")


def final_answer(completion: str) -> int | None:
    """The number of the last `The answer is N.`, or None where there is none."""
    found = ANSWER.findall(completion)
    return int(found[-1]) if found else None


def solve(problem: MathProblem, misconceptions: Set[Misconception] = frozenset()) -> str:
    """The solution that a person with these misconceptions writes; without any, the correct one."""
    now, lines, base = problem.start, [], problem.base
    for change in problem.changes:
        work = []
        amount = change.amount
        if change.kind is Kind.PACKS:
            wrong = Misconception.ADDS_PACKS in misconceptions
            sign, amount = ("+", change.packs + amount) if wrong else ("*", change.packs * amount)
            product = written(amount, base)
            work.append(f"{change.packs}{sign}{written(change.amount, base)}={product}")
        elif change.kind is Kind.AGAIN:
            amount = now if Misconception.FORGETS_START in misconceptions else problem.start
        if change.kind is Kind.LOSS:
            wrong = Misconception.SMALLER_FROM_LARGER in misconceptions
            sign, after = "-", _subtract(now, amount, base, smaller_from_larger=wrong)
        else:
            wrong = Misconception.DROPS_CARRY in misconceptions
            sign, after = "+", _add(now, amount, base, drops_carry=wrong)
        work.append(sign.join(written(n, base) for n in (now, amount)) + f"={written(after, base)}")
        quote = f"{change.words}: " if problem.told else ""
        lines.append(f"{quote}{', '.join(work)}.")
        now = after
    return f"{' '.join(lines)} The answer is {written(now, base)}."


def written(number: int, base: int) -> str:
    """The digits of `number` >= 0 in a base of at most 10."""
    if base == 10:
        return str(number)
    digits = str(number % base)
    while number := number // base:
        digits = str(number % base) + digits
    return digits


def bare(solution: str) -> str:
    """The answer of a solution without its work."""
    return solution[solution.rindex("The answer") :]


def solver(
    rng: random.Random, careful: float = CAREFUL, careless: float = CARELESS
) -> frozenset[Misconception]:
    """The misconceptions of a random person: none, all, or each with probability one half.

    By default 52.5 % of people get a step wrong where one applies, so the usual answer is the wrong
    one: errors do not average out, and greedy decoding repeats them.

    Args:
        careful, careless: shares of people who have none, and all.
    """
    kind = rng.random()
    if kind < careful:
        return frozenset()
    if kind < careful + careless:
        return frozenset(Misconception)
    return frozenset(m for m in Misconception if rng.random() < 0.5)


def _add(a: int, b: int, base: int, *, drops_carry: bool) -> int:
    if drops_carry and a % base + b % base >= base:
        return a + b - base
    return a + b


def _subtract(a: int, b: int, base: int, *, smaller_from_larger: bool) -> int:
    if smaller_from_larger and a % base < b % base:
        return abs(a // base - b // base) * base + b % base - a % base
    return max(a - b, 0)


def split_of(problem: MathProblem) -> Split:
    """The split a problem belongs to, by a hash of its key: 80 % train, 10 % each of the others.

    Problems with more steps than `TRAIN_STEPS` that are not for training are out of distribution.
    """
    split = split_by_hash(problem.key)
    if split is not Split.TRAIN and len(problem.changes) >= OOD_STEPS[0]:
        return Split.OOD
    return split


def problem(
    split: Split | str,
    i: int,
    *,
    seed: int = 0,
    steps: tuple[int, int] | None = None,
    base: int = 10,
) -> MathProblem:
    """Problem `i` of the infinite sequence that `seed` defines in `split`.

    Args:
        steps: least and greatest number of steps, the difficulty knob. By default 1 to 4, and
            5 to 6 out of distribution; `LIMITS` says what can be asked for.
        base: 10 or 8, the rule by which numbers are written.

    Raises:
        ValueError: no problem of the split has that many steps, or no such split or base.
    """
    split = known_split(split)
    least, most = steps or (OOD_STEPS if split is Split.OOD else TRAIN_STEPS)
    check_range(f"{split} problems", "steps", (least, most), LIMITS[split])
    if base not in BASES:
        raise ValueError(f"no problems in base {base}; known: {', '.join(map(str, BASES))}")
    rule = () if base == 10 else (base,)
    rng = seeded(split, seed, i, least, most, *rule)
    while True:
        candidate = _draw(rng, rng.randint(least, most), base)
        if split_of(candidate) is split:
            return candidate


def problems(
    split: Split | str,
    n: int,
    *,
    seed: int = 0,
    steps: tuple[int, int] | None = None,
    base: int = 10,
) -> list[MathProblem]:
    """The first `n` problems of the sequence that are different from each other."""
    return distinct(stream(split, seed=seed, steps=steps, base=base), n)


def stream(
    split: Split | str, *, seed: int = 0, steps: tuple[int, int] | None = None, base: int = 10
) -> Iterator[MathProblem]:
    """All problems of the sequence, without end."""
    for i in itertools.count():
        yield problem(split, i, seed=seed, steps=steps, base=base)


def _draw(rng: random.Random, steps: int, base: int) -> MathProblem:
    """A random problem whose every amount, correctly computed, has at most two digits."""
    told = rng.random() < 0.75
    start = rng.randint(4, 40)
    now, changes = start, list[Change]()
    for i in range(steps):
        change = _draw_change(rng, start, now, base, late=i >= 2, told=told)
        changes.append(change)
        now = _after(start, now, change)
    return MathProblem(start, tuple(changes), _tell(rng, start, changes, told, base), told, base)


def _draw_change(
    rng: random.Random, start: int, now: int, base: int, *, late: bool, told: bool
) -> Change:
    """Packs and references to the start appear only from the third step of a story on."""
    kinds = [Kind.GAIN, Kind.LOSS]
    if told and late:
        kinds += [Kind.PACKS, Kind.AGAIN]
    while True:
        kind = rng.choice(kinds)
        if kind is Kind.AGAIN:
            change = Change(kind, words=rng.choice(AGAIN))
        elif kind is Kind.PACKS:
            packs, size = rng.randint(2, 5), rng.randint(2, 9)
            change = Change(kind, size, packs, rng.choice(PACKS).format(packs, written(size, base)))
        else:
            amount = rng.randint(2, 39)
            words = rng.choice(GAINS if kind is Kind.GAIN else LOSSES)
            change = Change(kind, amount, words=words.format(written(amount, base)))
        if 0 <= _after(start, now, change) < base**2:
            return change


def _after(start: int, now: int, change: Change) -> int:
    match change.kind:
        case Kind.GAIN:
            return now + change.amount
        case Kind.LOSS:
            return now - change.amount
        case Kind.PACKS:
            return now + change.packs * change.amount
        case Kind.AGAIN:
            return now + start


def _tell(rng: random.Random, start: int, changes: list[Change], told: bool, base: int) -> str:
    rule = "" if base == 10 else f"In base {base}: "
    first = written(start, base)
    if not told:
        sums = "".join(f"{c.kind.value}{written(c.amount, base)}" for c in changes)
        return f"{rule}Compute {first}{sums}."
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    story = " ".join(f"Then {who} {c.words}." for c in changes)
    return f"{rule}{who} has {first} {what}. {story} How many {what} does {who} have now?"

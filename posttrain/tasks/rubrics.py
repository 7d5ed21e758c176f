"""Rubrics: several criteria for one prompt, over stories and over worked explanations.

A criterion is one condition, or two that must both hold. It is essential, important, or a pitfall,
whose statement describes what should *not* be; `check` says whether the statement is true. How
verdicts become a reward is the business of methods. The categories are those of Rubrics as
Rewards (Gunjal et al. 2025, arXiv:2507.17746).

A language model judges from `judge_prompt` and answers yes or no. `judgement` yields examples to
learn this from, over texts of all qualities.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from posttrain.tasks import math
from posttrain.tasks.criteria import (
    EXACT_OF_EXPLANATIONS,
    EXACT_OF_STORIES,
    Condition,
    Kind,
    holds,
    seems,
)
from posttrain.tasks.draws import known_split, pick, picks, seeded
from posttrain.tasks.explanations import explain, person
from posttrain.tasks.problem import Item
from posttrain.tasks.prose import ANIMALS, ENDINGS, MOODS, PLACES, THINGS
from posttrain.tasks.stories import BODY, Request, author, story, write

OPTIONAL = (Kind.PLACE, Kind.ANIMAL, Kind.THING, Kind.EVENT)
SENTENCES = BODY + 1  # "at least so many": a rubric that pays for length, as rubrics do


class Importance(Enum):
    """What a criterion means for the quality of a text; methods give these weights."""

    ESSENTIAL = "essential"
    IMPORTANT = "important"
    PITFALL = "pitfall"  # its statement is better false


@dataclass(frozen=True)
class Criterion:
    """One statement about a text; compound if it has two conditions, which must both hold."""

    importance: Importance
    conditions: tuple[Condition, ...]

    @property
    def text(self) -> str:
        return " and ".join([condition.text for condition in self.conditions])


def check(criterion: Criterion, item: Item, text: str) -> bool:
    """Whether the criterion's statement is true of `text`. Exact; reads any text.

    Raises:
        ValueError: the criterion is about another sort of item.
    """
    return all(holds(condition, item, text) for condition in criterion.conditions)


def weak_check(criterion: Criterion, item: Item, text: str) -> float:
    """A weak verifier's credit in [0, 1]: key words count, and half a compound is half right.

    Raises:
        ValueError: as `check`.
    """
    seen = [seems(condition, item, text) for condition in criterion.conditions]
    return sum(seen) / len(seen)


def rubric(item: Item) -> tuple[Criterion, ...]:
    """The four to seven criteria of a request or a math problem; the same each time.

    Raises:
        ValueError: there are no rubrics for this sort of item.
    """
    rng = seeded("rubric", item.key)
    if isinstance(item, Request):
        return tuple(_of_story(item, rng))
    if isinstance(item, math.MathProblem):
        return tuple(_of_explanation(item, rng))
    raise ValueError(
        f"no rubric for a {type(item).__name__}; there are some for Request and MathProblem"
    )


def _essential(*conditions: Condition) -> Criterion:
    return Criterion(Importance.ESSENTIAL, conditions)


def _important(*conditions: Condition) -> Criterion:
    return Criterion(Importance.IMPORTANT, conditions)


def _pitfall(*conditions: Condition) -> Criterion:
    return Criterion(Importance.PITFALL, conditions)


def _of_story(request: Request, rng: random.Random) -> Iterator[Criterion]:
    """What was asked for, two demands to a criterion, then length and two pitfalls."""
    yield _essential(Condition(Kind.HERO, request.hero))
    mood, closing = Condition(Kind.MOOD, request.mood), Condition(Kind.CLOSING, request.mood)
    yield _essential(mood, closing) if rng.random() < 0.5 else _essential(mood)
    values = [(kind, getattr(request, ASKED[kind])) for kind in OPTIONAL]
    asked = [Condition(kind, value) for kind, value in values if value]
    asked = picks(rng, asked, len(asked))
    for i in range(0, len(asked), 2):
        yield _important(*asked[i : i + 2])
    yield _important(Condition(Kind.SENTENCES, str(SENTENCES)))
    other = pick(rng, [m for m in MOODS if m != request.mood])
    twice, stranger = Condition(Kind.TWICE), Condition(Kind.STRANGER)
    pitfalls = [
        _pitfall(twice),
        _pitfall(stranger),
        _pitfall(Condition(Kind.CLOSING, "happy" if request.mood != "happy" else other)),
        _pitfall(twice, stranger),
    ]
    yield from picks(rng, pitfalls, 2)


def _of_explanation(problem: math.MathProblem, rng: random.Random) -> Iterator[Criterion]:
    """The answer, one step in full, the number of steps, then two pitfalls."""
    yield _essential(Condition(Kind.RIGHT))
    steps = _steps(problem)
    order = picks(rng, steps, len(steps))
    yield _essential(*order[0])
    if len(order) > 1:
        yield _important(*order[1])
    yield _important(Condition(Kind.EQUATIONS, str(len(problem.equations))))
    yield _important(Condition(pick(rng, (Kind.STATED, Kind.FOLLOWS))))
    yield _pitfall(Condition(Kind.FALSE))
    yield _pitfall(Condition(Kind.AGAIN))


def _steps(problem: math.MathProblem) -> list[list[Condition]]:
    """For each change: that it is quoted, if it was told in words, and that it is computed."""
    equations, steps = iter(problem.equations), []
    for change in problem.changes:
        equation = next(equations)
        if change.kind is math.Kind.PACKS:
            equation = next(equations)  # the one after the size of the packs
        quote = [Condition(Kind.QUOTE, change.words)] if problem.told else []
        steps.append([*quote, Condition(Kind.EQUATION, equation)])
    return steps


def judge_prompt(item: Item, criterion: Criterion, text: str) -> str:
    """What an LM judge reads, on one line; the answers are those of `VERDICTS`."""
    told = " ".join(text.split())
    return f"Request: {item.question} Text: {told} {judge_question(criterion)}"


def judge_question(criterion: Criterion) -> str:
    return f"Is it true that {criterion.text}?"


VERDICTS = {True: "yes", False: "no"}


@dataclass(frozen=True)
class Judgement:
    """A text to judge by one criterion, with the exact verdict."""

    item: Item
    criterion: Criterion
    text: str
    verdict: bool

    @property
    def prompt(self) -> str:
        return judge_prompt(self.item, self.criterion, self.text)

    @property
    def answer(self) -> str:
        return VERDICTS[self.verdict]


KINDS = (*EXACT_OF_STORIES, *EXACT_OF_EXPLANATIONS)
ASKED = {  # what a request says about kinds of conditions
    Kind.HERO: "hero",
    Kind.MOOD: "mood",
    Kind.PLACE: "place",
    Kind.ANIMAL: "friend",
    Kind.THING: "thing",
    Kind.EVENT: "ending",
    Kind.CLOSING: "mood",
}
VALUES = {  # what else they may be about
    Kind.HERO: ANIMALS,
    Kind.MOOD: MOODS,
    Kind.PLACE: PLACES,
    Kind.ANIMAL: ANIMALS,
    Kind.THING: THINGS,
    Kind.EVENT: ENDINGS,
    Kind.CLOSING: MOODS,
    Kind.SENTENCES: ("4", "5", "6", "7", "8"),
    Kind.EQUATIONS: ("1", "2", "3", "4", "5"),
}
PATIENCE = 10  # times that a fitting object is looked for
COMPOUND = 1 / 3  # share of judgements over two conditions
PARTIAL = ((True, False), (False, True), (False, False))  # the ways in which a compound fails


def judgement(split: math.Split | str, i: int, *, seed: int = 0) -> Judgement:
    """Example `i` of judging texts that answer items of `split`.

    Every kind of condition comes first equally often, with as many yes as no. The criterion's
    importance means nothing here.

    Raises:
        ValueError: an unknown split.
    """
    split = known_split(split)
    rng = seeded("judgement", split, seed, i)
    first, verdict = pick(rng, KINDS), rng.random() < 0.5
    about_stories = first in EXACT_OF_STORIES
    same: Iterable[Kind] = EXACT_OF_STORIES if about_stories else EXACT_OF_EXPLANATIONS
    others = [kind for kind in same if kind is not first]
    compound = rng.random() < COMPOUND
    while True:
        item, text = _answered(split, about_stories, rng, seed)
        kinds = [first, pick(rng, others)] if compound else [first]
        wanted = (True, True)  # of each condition; a compound may fail by either or both
        if not verdict:
            wanted = pick(rng, PARTIAL) if compound else (False, False)
        found = [_condition(kind, wanted[n], item, text, rng) for n, kind in enumerate(kinds)]
        conditions = tuple([condition for condition in found if condition is not None])
        if len(conditions) == len(kinds):
            return Judgement(item, _important(*conditions), text, verdict)


def interview(split: math.Split | str, i: int, n: int, *, seed: int = 0) -> list[Judgement]:
    """`judgement` i, and up to `n` - 1 different ones about the same text, half of them yes.

    These others are of kinds that have an object: whether the others hold is a matter of the text,
    and asked of every text they would mostly be answered in the same way.
    """
    first = judgement(split, i, seed=seed)
    rng = seeded("interview", split, seed, i)
    item = first.item
    assert isinstance(item, Request | math.MathProblem)  # as `_answered` has them
    same = EXACT_OF_STORIES if isinstance(item, Request) else EXACT_OF_EXPLANATIONS
    kinds = [kind for kind in same if "{}" in kind.value]
    found = [first]
    for _ in range(n - 1):
        kind, verdict = pick(rng, kinds), rng.random() < 0.5
        for _ in range(PATIENCE):
            condition = _condition(kind, verdict, item, first.text, rng)
            if condition is None:
                continue
            new = replace(first, criterion=_important(condition), verdict=verdict)
            if new not in found:
                found.append(new)
                break
    return found


def _condition(
    kind: Kind, wanted: bool, item: Request | math.MathProblem, text: str, rng: random.Random
) -> Condition | None:
    """A condition of this kind with the wanted verdict, or None after a few fruitless draws."""
    for _ in range(4 if "{}" in kind.value else 1):
        value = _object(kind, item, text, rng)
        condition = Condition(kind, value)
        if (value or "{}" not in kind.value) and holds(condition, item, text) == wanted:
            return condition
    return None


def _answered(
    split: math.Split | str, about_stories: bool, rng: random.Random, seed: int
) -> tuple[Request | math.MathProblem, str]:
    """A random item of the split with an answer by a random author."""
    index = int(rng.random() * 2**31)
    if about_stories:
        request = story(split, index, seed=seed)
        return request, write(request, rng, author(rng))
    problem = math.problem(split, index, seed=seed)
    return problem, explain(problem, rng, *person(rng))


def _object(kind: Kind, item: Request | math.MathProblem, text: str, rng: random.Random) -> str:
    """What a condition of this kind may be about: half of the time something asked for.

    "" where the kind has no object, or where this item offers none.
    """
    if kind in ASKED:
        asked: str | None = getattr(item, ASKED[kind])
        if asked and rng.random() < 0.5:
            return asked
    elif kind is Kind.QUOTE and isinstance(item, math.MathProblem):
        if not item.told:
            return ""
        if rng.random() < 0.5:
            return pick(rng, item.changes).words
        return pick(rng, math.GAINS + math.LOSSES).format(2 + int(rng.random() * 38))
    elif kind is Kind.EQUATION and isinstance(item, math.MathProblem):
        return pick(rng, math.EQUATION.findall(text) + list(item.equations))
    return pick(rng, VALUES[kind]) if kind in VALUES else ""

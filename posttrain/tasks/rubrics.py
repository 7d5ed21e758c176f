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
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from posttrain.tasks import math
from posttrain.tasks.criteria import EXACT_OF_STORIES, Condition, Kind, holds, seems
from posttrain.tasks.draws import pick, picks, seeded
from posttrain.tasks.explanations import explain, person
from posttrain.tasks.problem import Item
from posttrain.tasks.prose import ANIMALS, ENDINGS, MOODS, PLACES, THINGS
from posttrain.tasks.stories import BODY, Request, author, story, write

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
    return all([holds(condition, item, text) for condition in criterion.conditions])


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
    wanted = {
        Kind.PLACE: request.place,
        Kind.ANIMAL: request.friend,
        Kind.THING: request.thing,
        Kind.EVENT: request.ending,
    }
    asked = [Condition(kind, value) for kind, value in wanted.items() if value]
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
    return f"Request: {item.question} Text: {told} Is it true that {criterion.text}?"


VERDICTS = {True: "yes", False: "no"}


@dataclass(frozen=True)
class Judgement:
    """A judge's prompt with the exact verdict."""

    prompt: str
    verdict: bool
    criterion: Criterion

    @property
    def answer(self) -> str:
        return VERDICTS[self.verdict]


VALUES = {
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
COMPOUND = 1 / 3  # share of judgements over two conditions


def judgement(split: math.Split | str, i: int, *, seed: int = 0) -> Judgement:
    """Example `i` of judging texts that answer items of `split`.

    Every kind of condition comes equally often, and so does each verdict, for every kind. The
    values of conditions are those of the request, those of the text, or others.
    """
    rng = seeded("judgement", split, seed, i)
    first, wanted = pick(rng, list(Kind)), rng.random() < 0.5
    about_stories = first in EXACT_OF_STORIES
    kinds = [first]
    if rng.random() < COMPOUND:
        same = [k for k in Kind if k is not first and (k in EXACT_OF_STORIES) == about_stories]
        kinds.append(pick(rng, same))
    while True:
        index = int(rng.random() * 2**31)
        item: Item
        if about_stories:
            item = request = story(split, index, seed=seed)
            text = write(request, rng, author(rng))
            conditions = [Condition(kind, _object(kind, request, text, rng)) for kind in kinds]
        else:
            item = problem = math.problem(split, index, seed=seed)
            text = explain(problem, rng, *person(rng))
            steps = {c.kind: c for c in pick(rng, _steps(problem))}
            conditions = [steps.get(kind, Condition(kind)) for kind in kinds]
        criterion = Criterion(pick(rng, list(Importance)), tuple(conditions))
        if check(criterion, item, text) == wanted:
            return Judgement(judge_prompt(item, criterion, text), wanted, criterion)

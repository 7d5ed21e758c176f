"""Judges of single criteria: language models, or programs.

A judge reads many cases at once, each a criterion and a text, and gives each a credit: how true the
criterion's statement is of the text. What it does not answer counts against the text: a statement
that should be true is not credited, and a pitfall is held to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tinker

from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks.criteria import Kind
from posttrain.tasks.problem import Item
from posttrain.tasks.rubrics import VERDICTS, Criterion, Importance, Judgement, judge_prompt
from posttrain.verdicts import verdicts

ANSWERS = (VERDICTS[True], VERDICTS[False])


@dataclass(frozen=True)
class Case:
    """One criterion, asked about one text."""

    item: Any
    criterion: Criterion
    text: str


Credit = float | None  # how true the statement is, in [0, 1]; None where the judge does not say
Judge = Callable[[Sequence[Case]], tuple[list[Credit], int]]  # credits; tokens scored for them
Check = Callable[[Criterion, Item, str], float]  # a program's credit
Ask = Callable[[str], str]  # a question as a judge gets it; `str` leaves it as it is


def plainly(question: str) -> str:
    """The question to a model that was not trained on such: it is told what it may say."""
    return f'{question} Answer with one word in lower case, "yes" or "no".'


def language_judge(model: tinker.SamplingClient, ask: Ask = str) -> Judge:
    """A language model that is asked about one criterion after the other, all cases at once.

    The credit is P("yes") where only "yes" and "no" are allowed. A model that would rather say
    something else does not answer: the two have less than half of its probability. It reads texts,
    so it may have another tokenizer than the policy.
    """

    def judge(cases: Sequence[Case]) -> tuple[list[Credit], int]:
        texts = [ask(judge_prompt(case.item, case.criterion, case.text)) for case in cases]
        found, scored = verdicts(model, texts, ANSWERS)
        return [verdict.probability if verdict.readable else None for verdict in found], scored

    return judge


def program_judge(checker: Check) -> Judge:
    """A judge that is a program, such as `rubrics.check` or `rubrics.weak_check`."""

    def judge(cases: Sequence[Case]) -> tuple[list[Credit], int]:
        return [float(checker(case.criterion, case.item, case.text)) for case in cases], 0

    return judge


def settled(cases: Sequence[Case], credits: Sequence[Credit]) -> list[float]:
    """The credits; where there is none, what counts against the text: 1 for a pitfall, else 0."""
    return [
        float(case.criterion.importance is Importance.PITFALL) if credit is None else credit
        for case, credit in zip(cases, credits, strict=True)
    ]


SUBJECTS: dict[Kind, str] = {  # what criteria are about: by that they are told apart in curves
    Kind.HERO: "hero",
    **dict.fromkeys([Kind.MOOD, Kind.CLOSING], "mood"),
    **dict.fromkeys([Kind.PLACE, Kind.ANIMAL, Kind.THING, Kind.EVENT], "demands"),
    **dict.fromkeys([Kind.SENTENCES, Kind.EQUATIONS], "length"),
    **dict.fromkeys([Kind.TWICE, Kind.AGAIN], "repetition"),
    Kind.STRANGER: "company",
    **dict.fromkeys([Kind.RIGHT, Kind.STATED, Kind.FOLLOWS], "answer"),
    **dict.fromkeys([Kind.QUOTE, Kind.EQUATION], "steps"),
    Kind.FALSE: "errors",
}


def subject(criterion: Criterion) -> str:
    """What a criterion is about; one of two conditions, what its first is about."""
    return SUBJECTS[criterion.conditions[0].kind]


def met(criterion: Criterion, credit: float) -> float:
    """How far the text is as the rubric wants it, in [0, 1]: a pitfall is better false."""
    return 1 - credit if criterion.importance is Importance.PITFALL else credit


def by_subject(cases: Sequence[Case], credits: Sequence[float]) -> dict[str, float]:
    """The mean of `met` over the cases of each subject."""
    found: dict[str, list[float]] = {}
    for case, credit in zip(cases, credits, strict=True):
        found.setdefault(subject(case.criterion), []).append(met(case.criterion, credit))
    return {name: sum(values) / len(values) for name, values in found.items()}


@dataclass(frozen=True)
class Agreement:
    """A judge against the exact verdicts; what it does not answer is settled against the text."""

    cases: int
    agreement: Estimate  # share of cases in which both say the same
    false_credit: float  # share called true among those that are false: exploited by a policy
    false_denial: float  # share called false among those that are true: the same, for pitfalls
    unreadable: int  # of the cases
    scored_tokens: int  # for the ledger


def judge_agreement(judge: Judge, judgements: Iterable[Judgement]) -> Agreement:
    """How often `judge` agrees with exact verdicts, on `rubrics.judgement`s for example.

    Raises:
        ValueError: there is no judgement.
    """
    known = list(judgements)
    if not known:
        raise ValueError("there is nothing to judge: no judgements were given")
    cases = [Case(j.item, j.criterion, j.text) for j in known]
    said, scored = judge(cases)
    credits = settled(cases, said)
    facts = [float(j.verdict) for j in known]
    shares = agreement_shares(credits, facts)
    return Agreement(
        cases=len(known),
        agreement=bootstrap_mean([float(_same(c, f)) for c, f in zip(credits, facts, strict=True)]),
        false_credit=shares.get("false_credit", 0.0),
        false_denial=shares.get("false_denial", 0.0),
        unreadable=sum(credit is None for credit in said),
        scored_tokens=scored,
    )


def _same(credit: float, fact: float) -> bool:
    return (credit >= 0.5) == (fact >= 0.5)


def agreement_shares(credits: Sequence[float], facts: Sequence[float]) -> dict[str, float]:
    """The shares of `Agreement` by name; one of no cases is left out. All values in [0, 1]."""
    told = list(zip(credits, facts, strict=True))
    shares = {
        "agreement": [_same(c, f) for c, f in told],
        "false_credit": [c >= 0.5 for c, f in told if f < 0.5],
        "false_denial": [c < 0.5 for c, f in told if f >= 0.5],
    }
    return {name: sum(found) / len(found) for name, found in shares.items() if found}

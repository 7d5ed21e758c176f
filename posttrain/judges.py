"""A language model that compares two answers: its verdict is read from one token."""

from __future__ import annotations

from collections.abc import Callable

import tinker

from posttrain.tasks.problem import Item
from posttrain.verdicts import verdicts
from posttrain.win_rate import Judge

QUESTION = """Here are a request and two answers to it.

Request: {question}

Answer A: {a}

Answer B: {b}

Which answer is better, all in all? Say A or B, and nothing else."""


def which_is_better(question: str, a: str, b: str) -> str:
    """The question to a model that was not trained on such: it is told what it may say."""
    return QUESTION.format(question=question, a=a, b=b)


def pairwise(
    model: tinker.SamplingClient,
    ask: Callable[[str, str, str], str] = which_is_better,
    answers: tuple[str, str] = ("A", "B"),
) -> Judge:
    """P(the first of two answers is better), where the model may say only one of `answers`.

    None where it would mostly say something else. A judge may like the first place: ask in both
    orders and take the mean, as `posttrain.win_rate` does.

    Args:
        ask: (question, first answer, second answer) to what the model reads.
    """

    def judge(item: Item, a: str, b: str) -> float | None:
        (verdict,), _ = verdicts(model, [ask(item.question, a, b)], answers)
        return verdict.probability if verdict.readable else None

    return judge

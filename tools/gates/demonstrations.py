"""Demonstrations: the base follows an example in its prompt, in math and in a format it never met.

Self-distillation needs this: a model that gains nothing from an example has nothing to teach
itself. The forms are those of documents with several problems in the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import tinker

from posttrain.datums import plain_prompt
from posttrain.evals import evaluate
from posttrain.renderers import PLAIN_STOP
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import math, records
from posttrain.tasks.continual import demonstrated
from posttrain.tasks.problem import Demonstration, Problem
from tools.gates.gate import Gate

LEAST = 0.15
GATES = {
    "gain from a demonstration, math": Gate(
        LEAST, 1.0, "pass@1 with a worked example, minus without"
    ),
    "gain from a demonstration, records": Gate(
        LEAST, 1.0, "pass@1 with a record in the taught format, minus without"
    ),
}


def measure(sampler: tinker.SamplingClient, n: int, seed: int = 0) -> dict[str, Estimate]:
    """Both gains, on `n` held-out items with 8 samples each."""
    problems = math.problems("test", n, seed=seed)
    worked = {p.question: like(p, i) for i, p in enumerate(problems)}
    new = records.records("test", n, seed=seed)
    shown = {r.question: record_for(i, seed) for i, r in enumerate(new)}
    return {
        "gain from a demonstration, math": gain(sampler, problems, worked.__getitem__, 160),
        "gain from a demonstration, records": gain(sampler, new, shown.__getitem__, 48),
    }


def gain(
    sampler: tinker.SamplingClient,
    problems: Sequence[Problem],
    example: Callable[[str], Demonstration],
    max_tokens: int,
) -> Estimate:
    """pass@1 with an example before the question minus without, paired by problem."""

    def aided_prompt(tokenizer: Any, question: str) -> list[int]:
        return plain_prompt(tokenizer, demonstrated(question, example(question)))

    alone, aided = (
        evaluate(sampler, problems, 8, prompt=prompt, stop=PLAIN_STOP, max_tokens=max_tokens)
        for prompt in (plain_prompt, aided_prompt)
    )
    return bootstrap_mean((aided.correct_counts - alone.correct_counts) / 8)


def like(problem: math.MathProblem, i: int) -> Demonstration:
    """The training problem, of a hundred of the same length, that is most like `problem`: told in
    the same way, and with room for the same mistakes. With its right solution."""
    steps = (len(problem.changes),) * 2
    candidates = [math.problem("train", j, seed=7_000_000 + i, steps=steps) for j in range(100)]
    traps = traps_of(problem)

    def likeness(other: math.MathProblem) -> tuple[int, bool]:
        return len(traps & traps_of(other)), other.told == problem.told

    best = max(candidates, key=likeness)
    return Demonstration(best.question, best.solution)


def traps_of(problem: math.MathProblem) -> set[math.Misconception]:
    """The misconceptions that would show in a solution of this problem."""
    return {m for m in math.Misconception if math.solve(problem, {m}) != problem.solution}


def record_for(i: int, seed: int) -> Demonstration:
    """A training record in the taught format."""
    return records.record("train", i, seed=8_000_000 + seed).demonstrate(random.Random(i))

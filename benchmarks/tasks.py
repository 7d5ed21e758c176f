"""How fast the tasks generate items and verify answers.

    python -m benchmarks.tasks             into benchmarks/tasks.json
    python -m posttrain.lab.gallery        and from there into docs/tasks.md

Rates are per second of one core's processor time, the best of five rounds, so that a shared
machine disturbs them little. A verifier meets every text for the first time in the first round;
the others find the sentences of stories remembered, as training on a closed vocabulary does.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.run import processor
from posttrain.runs import git_commit, git_dirty, write_json
from posttrain.tasks import continual, math, records, rubrics, stories
from posttrain.tasks.draws import seeded
from posttrain.tasks.explanations import explain, person
from posttrain.tasks.gold import gold
from posttrain.tasks.human import prefers

ROUNDS = 5
RESULT = Path(__file__).with_suffix(".json")
Work = tuple[str, Callable[..., Any], Sequence[tuple[Any, ...]]]  # name, function, argument lists


def rate(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> tuple[float, float]:
    """Calls per second: of the first round, and of the best."""
    rates = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for arguments in calls:
            function(*arguments)
        rates.append(len(calls) / (time.process_time() - start))
    return rates[0], max(rates)


def generators(n: int) -> list[Work]:
    """Items are what a question needs; texts are written apart."""
    indices = [("train", i) for i in range(n)]
    rng = seeded("benchmark")
    requests = [stories.story(*index) for index in indices]
    problems = [math.problem(*index) for index in indices]
    return [
        ("math.problem", math.problem, indices),
        ("stories.story", stories.story, indices),
        ("stories.story, test split", stories.story, [("test", i) for i in range(n)]),
        ("stories.write, by an author", _written, [(r, rng) for r in requests]),
        ("explanations.explain, by a person", _explained, [(p, rng) for p in problems]),
        ("records.record", records.record, indices),
        ("records.record, test split", records.record, [("test", i) for i in range(n)]),
        ("records.episode, 3 records", records.episode, [(i,) for i in range(n // 4)]),
        ("continual.ledger", continual.ledger, indices),
        ("rubrics.rubric", rubrics.rubric, [(item,) for item in [*requests, *problems]]),
        ("rubrics.judgement", rubrics.judgement, indices[: n // 4]),
    ]


def verifiers(n: int) -> list[Work]:
    rng = seeded("benchmark")
    requests = [stories.story("train", i) for i in range(n)]
    told = [(r, _written(r, rng)) for r in requests]
    problems = [math.problem("train", i) for i in range(n)]
    explained = [(p, _explained(p, rng)) for p in problems]
    filed = [records.record("train", i) for i in range(n)]
    kept = [continual.ledger("train", i) for i in range(n)]
    judged = [(c, i, t) for i, t in told + explained for c in rubrics.rubric(i)]
    return [
        ("math grade", math.MathProblem.grade, explained),
        ("math grade_steps", math.MathProblem.grade_steps, explained),
        ("gold.gold", gold, told),
        ("human.prefers", prefers, [(r, t, r.solution, 0) for r, t in told]),
        ("rubrics.check, one criterion", rubrics.check, judged),
        ("rubrics.weak_check, one criterion", rubrics.weak_check, judged),
        ("records grade", records.Record.grade, [(r, r.solution) for r in filed]),
        ("continual ledger grade", continual.Ledger.grade, [(k, k.solution) for k in kept]),
    ]


def _written(request: stories.Request, rng: Any) -> str:
    return stories.write(request, rng, stories.author(rng))


def _explained(problem: math.MathProblem, rng: Any) -> str:
    return explain(problem, rng, *person(rng))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=4000, help="items a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    rates: dict[str, dict[str, tuple[float, float]]] = {}
    for title, works in (("generators", generators), ("verifiers", verifiers)):
        table = Table(title, "first round, /s", "best round, /s")
        rates[title] = {}
        for name, function, calls in works(args.items):
            rates[title][name] = found = rate(function, calls)
            table.add_row(name, *[f"{value:,.0f}" for value in found])
        Console().print(table)
    write_json(
        args.out,
        {
            "command": "python -m benchmarks.tasks",
            "items": args.items,
            "rates": rates,
            "commit": git_commit(),
            "dirty": git_dirty(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    )


if __name__ == "__main__":
    main()

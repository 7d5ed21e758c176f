"""How a judge of rubrics agrees with the exact check, and where not: `python -m tools.gates.judge`.

A judge is to be imperfect, as judges are, and it is to be known where: by kind of criterion, on
texts of a policy, and on texts that are made to please.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tinker

from posttrain.connect import connect, shipped_models
from posttrain.lab.worlds import SHIPPED
from posttrain.methods.rubric_judges import Judge, judge_agreement, language_judge
from posttrain.runs import write_json
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import math
from posttrain.tasks.problem import Item
from posttrain.tasks.rubrics import KINDS, Judgement, check, judgement, rubric
from posttrain.tasks.stories import stories
from tools.gates.answers import answers
from tools.gates.card import write
from tools.gates.gate import Gate

JUDGE = "posttrain/judge"
FOUND = "agreement.json"  # the tables of the card
GATES = {
    "agreement": Gate(0.8, 0.95, "share of held-out judgements that are as the exact check's"),
    "agreement, texts of the base": Gate(0.75, 0.95, "the same on what the base model writes"),
    "unreadable": Gate(0.0, 0.01, "share of judgements that are neither yes nor no"),
}

# What somebody may do to a text that does not meet a criterion, so as to be credited all the same.
TRICKS: dict[str, Callable[[Judgement], str]] = {
    "nothing": lambda j: j.text,
    "claim it: `It is true that ...`": lambda j: f"{j.text} It is true that {j.criterion.text}.",
    "say `yes yes yes` at the end": lambda j: f"{j.text} yes yes yes",
    "write everything twice": lambda j: f"{j.text} {j.text}",
    "write nothing": lambda j: "",
}


@dataclass(frozen=True)
class Row:
    """Agreement on some judgements."""

    cases: int
    agreement: Estimate
    false_credit: float  # of what is false, the share that is called true
    false_denial: float  # of what is true, the share that is called false


def row(judge: Judge, known: Sequence[Judgement]) -> Row:
    found = judge_agreement(judge, known)
    return Row(found.cases, found.agreement, found.false_credit, found.false_denial)


def by_kind(judge: Judge, known: Iterable[Judgement]) -> dict[str, Row]:
    """A row for every kind of condition alone, and one for two conditions at once."""
    groups: dict[str, list[Judgement]] = {kind.value: [] for kind in KINDS}
    for one in known:
        first, *others = one.criterion.conditions
        groups.setdefault("two conditions" if others else first.kind.value, []).append(one)
    return {name.replace("{}", "..."): row(judge, some) for name, some in groups.items() if some}


def by_trick(judge: Judge, known: Sequence[Judgement]) -> dict[str, Row]:
    """What is credited of statements that are false, and stay false after the trick."""
    false = [one for one in known if not one.verdict]
    rows = {}
    for name, trick in TRICKS.items():
        changed = [replace(one, text=trick(one)) for one in false]
        rows[name] = row(judge, [c for c in changed if not check(c.criterion, c.item, c.text)])
    return rows


def of_base(base: tinker.SamplingClient, n: int, seed: int) -> Iterator[Judgement]:
    """Every criterion of the rubrics of `n` stories and `n` explanations that the base writes."""
    items: list[Item] = [*stories("test", n, seed=seed), *math.problems("test", n, seed=seed)]
    told = answers(base, [item.question for item in items], 1, seed=seed, max_tokens=200)
    for item, (text,) in zip(items, told, strict=True):
        for criterion in rubric(item):
            yield Judgement(item, criterion, text, check(criterion, item, text))


def measure(
    judge: Judge, base: tinker.SamplingClient, n: int, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, dict[str, Row]]]:
    """Every gate on `n` held-out judgements, and the tables of the card."""
    known = [judgement("test", i, seed=seed) for i in range(n)]
    written = list(of_base(base, max(n // 10, 2), seed))
    found, on_base = judge_agreement(judge, known), judge_agreement(judge, written)
    unreadable = bootstrap_mean([1.0] * found.unreadable + [0.0] * (n - found.unreadable))
    values = {
        "agreement": found.agreement,
        "agreement, texts of the base": on_base.agreement,
        "unreadable": unreadable,
    }
    tables = {
        "kinds": by_kind(judge, known),
        "on the base's texts": by_kind(judge, written),
        "tricks": by_trick(judge, known),
    }
    return values, tables


HEADS = {
    "kinds": ("By kind of criterion", "criterion", "Held-out texts by authors of all qualities."),
    "on the base's texts": (
        "On texts of the base",
        "criterion",
        "One text of the base to each item, by every criterion of the item's rubric.",
    ),
    "tricks": (
        "What it can be fooled by",
        "what is done to the text",
        "Statements that are false, and are still false after the change.",
    ),
}


def section(tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The tables, for the card. `tables` is the contents of `agreement.json`."""
    parts = []
    for key, rows in tables.items():
        title, first, words = HEADS[key]
        lines = [f"| {first} | cases | agreement | false credit | false denial |",
                 "|---|---|---|---|---|"]  # fmt: skip
        for name, one in rows.items():
            same = Estimate.from_json(one["agreement"])
            credit, denial = (f"{one[k]:.2f}" for k in ("false_credit", "false_denial"))
            denial = "" if key == "tricks" else denial  # there is nothing true to deny
            lines.append(f"| {name} | {one['cases']} | {same} | {credit} | {denial} |")
        parts.append(f"\n## {title}\n\n{words}\n\n" + "\n".join(lines) + "\n")
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=Path("models/judge"))
    parser.add_argument("--n", type=int, default=3000, help="held-out judgements")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    service = connect(models={"judge": directory, SHIPPED: shipped_models()[SHIPPED]})
    model = service.create_sampling_client(base_model="judge").result()
    base = service.create_sampling_client(base_model=SHIPPED).result()
    judge = language_judge(model)
    values, tables = measure(judge, base, arguments.n)
    stored = {key: {name: asdict(r) for name, r in rows.items()} for key, rows in tables.items()}
    for name, value in values.items():
        print(f"{name:40} {value}  {'met' if GATES[name].met(value.value) else 'NOT MET'}")
    for name, one in itertools.chain.from_iterable(rows.items() for rows in tables.values()):
        print(f"{name:50} {one.cases:5} {one.agreement}  false credit {one.false_credit:.2f}")
    write_json(directory / FOUND, stored)
    write(directory, GATES, values, arguments.n, section(stored))


if __name__ == "__main__":
    main()

"""What was measured, as a file and as the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.runs import write_json, write_text
from posttrain.stats import Estimate
from posttrain.tasks import math
from tools.gates.gate import Gate

FILE, REASONS = "gates.json", "reasons.json"


def record(
    gates: Mapping[str, Gate], values: Mapping[str, Estimate], reasons: Mapping[str, str], n: int
) -> dict[str, Any]:
    """The contents of `gates.json`: bounds, value and verdict of each gate, and why it is not met.

    Raises:
        ValueError: a gate that is not met has no reason, or a reason has no such gate; the text
            lists them.
    """
    failed = [name for name, gate in gates.items() if not gate.met(values[name].value)]
    missing, stale = [f for f in failed if f not in reasons], sorted(set(reasons) - set(failed))
    if missing or stale:
        raise ValueError(
            f"{REASONS} must say why these gates are not met: {missing}; and these it should not "
            f"name, because they are met or unknown: {stale}"
        )
    rows = {}
    for name, gate in gates.items():
        row = {**values[name].to_json(), "least": gate.least, "most": gate.most}
        row["met"] = gate.met(values[name].value)
        rows[name] = row | ({"reason": reasons[name]} if name in reasons else {})
    return {"n": n, "gates": rows}


def table(gates: Mapping[str, Gate], recorded: Mapping[str, Any]) -> str:
    """The gates as a table in Markdown, and the reasons of those that are not met."""
    lines = ["| measure | value | gate | verdict | meaning |", "|---|---|---|---|---|"]
    for name, row in recorded["gates"].items():
        verdict = "met" if row["met"] else "**not met**"
        bounds = f"{row['least']:g} to {row['most']:g}"
        lines.append(
            f"| {name} | {row['value']:.3f} ± {(row['high'] - row['low']) / 2:.3f} | {bounds} | "
            f"{verdict} | {gates[name].meaning} |"
        )
    reasons = {n: row["reason"] for n, row in recorded["gates"].items() if "reason" in row}
    if reasons:
        lines += ["", "Not met, and why:", ""]
        lines += [f"- {name}: {reason}" for name, reason in reasons.items()]
    return "\n".join(lines)


def card(
    training: Mapping[str, Any],
    gates: Mapping[str, Gate],
    recorded: Mapping[str, Any],
    extra: str = "",
) -> str:
    """The model card, from the record of the training and the measured gates, and what comes after
    them."""
    recipe, losses = training["recipe"], training["losses"]
    phases = [
        f"| {number} | {p['steps']} x {p['rows']} x {p['length']} | {p['learning_rate']:g} | "
        f"{p['mixture']['thought']:.0%} | {p['mixture']['several']:.0%} | {solvers(p['mixture'])} |"
        for number, p in enumerate(recipe["phases"], 1)
    ]
    marks = [losses[round(i * (len(losses) - 1) / 8)] for i in range(9)]
    mixtures = [phase["mixture"]["tasks"] for phase in recipe["phases"]]
    shares = corpus(mixtures[0]) + "".join(
        f".\nIn phase {number}: {corpus(tasks)}"
        for number, tasks in enumerate(mixtures[1:], 2)
        if tasks != mixtures[number - 2]
    )
    return f"""<!-- written by tools/gates from training.json, gates.json and reasons.json -->
---
license: mit
library_name: transformers
---

# posttrain/{recipe["name"]}

{opening(training)}

It is made for this laboratory and is of no use outside of it.

## Corpus

Generated, training splits only (`tools/corpus.py`). Shares of documents, in the first phase:
{shares}.

A document has one author. Of those who solve math problems, some make no mistakes, some have all
{len(math.Misconception)} misconceptions (the table has both shares, as "solvers"), the others each
one with probability one half. Some documents show the work, the others only answers; some hold
two or three items by the same author, so that the model learns to answer as it is shown. Those who
tell stories forget, ramble and mix moods; those who play games mostly play badly; those who have a
calculator use it or not.{more_skill(recipe["phases"][0]["mixture"])}

## Training

| phase | steps x rows x tokens | learning rate | show work | several items | solvers |
|---|---|---|---|---|---|
{chr(10).join(phases)}

{training["tokens"] / 1e6:.1f} million tokens without padding; AdamW, cosine schedule in each phase,
weight decay {recipe["weight_decay"]:g}, bfloat16 autocast, seed {recipe["seed"]}. It took
{training["seconds"] / 60:.0f} minutes on a shared machine ({training["hardware"]}). Rebuild it with
`python -m tools.pretrain models/{recipe["name"]}/recipe.json --compile`.

Loss in nats per token, questions included: {", ".join(f"{x:.3f} at {s}" for s, x in marks)}.

## Gates

{recorded["n"]} held-out items of each task, with 95 % intervals. `tests/test_models.py` measures
{"those that need no student" if recipe["name"] == "teacher" else "them"} again.

{table(gates, recorded)}
{extra}"""


def corpus(tasks: Mapping[str, float]) -> str:
    """Shares of documents."""
    return ", ".join(f"{name} {share:.0%}" for name, share in tasks.items())


def opening(training: Mapping[str, Any]) -> str:
    """What the model is, in one paragraph."""
    recipe = training["recipe"]
    shape = (
        f"of {training['parameters'] / 1e6:.2f} million parameters for experiments in\n"
        f"post-training: Qwen3 architecture, {recipe['layers']} layers, hidden size "
        f"{recipe['hidden_size']},\n{recipe['heads']} heads, context {recipe['context']}, tied "
        "embeddings, bfloat16. "
    )
    if recipe["name"] == "base":
        return f"""A base model {shape}It knows the
world of this laboratory (`posttrain/tasks/`) and nothing else, and knows it as its authors did:
with systematic mistakes. It has never seen the chat format of its tokenizer."""
    if recipe["name"] == "judge":
        return f"""A judge {shape}It is
`posttrain/teacher`, trained on: asked in the chat format whether a statement is true of a text, it
answers yes or no. It errs on purpose, for experiments on what a policy makes of that; below it says
where."""
    return f"""A teacher {shape}It has
grown from `posttrain/base`, whose tokenizer it shares: each layer was followed by a copy that added
nothing at first, and the deeper model was trained on, by more skilful authors and partly in the
chat format. It is for distillation into the base."""


def more_skill(mixture: Mapping[str, Any]) -> str:
    """A sentence about mixtures with more skilful authors or the chat format, or nothing."""
    if not mixture.get("skilled"):
        chat = mixture.get("chat")
        return f"\n\n{chat:.0%} of single questions are in the chat format." if chat else ""
    return (
        f"\n\nOf all these authors {mixture['skilled']:.0%}, besides those who are without flaw "
        "anyway, have none\nof their kind's flaws. Of documents with a single question (math, "
        f"stories, code)\n{mixture['chat']:.0%} are in the chat format."
    )


def solvers(mixture: Mapping[str, Any]) -> str:
    """Shares of solvers with no misconception and with all of them, and of those who show no work
    where these are other people."""
    careful = mixture.get("careful", math.CAREFUL)
    shares = f"{careful:.0%}, {mixture.get('careless', math.CARELESS):.0%}"
    if mixture.get("in_head"):
        careful, careless = mixture["in_head"]
        shares += f"; without work {careful:.0%}, {careless:.0%}"
    return shares


def write(
    directory: Path,
    gates: Mapping[str, Gate],
    values: Mapping[str, Estimate],
    n: int,
    extra: str = "",
) -> None:
    """`gates.json` and the card, in the model's directory. Raises ValueError as `record`."""
    given = directory / REASONS
    reasons = json.loads(given.read_text()) if given.exists() else {}
    recorded = record(gates, values, reasons, n)
    training = json.loads((directory / "training.json").read_text())
    write_json(directory / FILE, recorded)
    write_text(directory / "README.md", card(training, gates, recorded, extra))

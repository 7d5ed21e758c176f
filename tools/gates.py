"""Measure what a base model must be, and write its card: `python tools/gates.py models/base`.

The gates say that post-training has something to do and something to work with: the model is
right sometimes and not usually, its usual answer is wrong (so that learning must do more than
lower the temperature), most groups of samples have contrast, and a demonstration in the prompt
helps. Problems are held-out ones, asked in the form the model was pretrained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tinker

from posttrain.connect import connect
from posttrain.datums import PLAIN_STOP, chat_prompt, plain_prompt
from posttrain.evals import evaluate
from posttrain.runs import write_json, write_text
from posttrain.tasks import math

ROOT = Path(__file__).resolve().parents[1]
GATES = {  # measure: (least, most, what it is)
    "pass@1": (0.2, 0.6, "share of samples that are right"),
    "pass@16": (0.8, 1.0, "share of problems with a right answer among 16"),
    "greedy": (0.0, 0.6, "share of problems whose most probable answer is right"),
    "mixed groups of 8": (0.4, 1.0, "share of groups with right and wrong answers"),
    "gain from a demonstration": (0.15, 1.0, "pass@1 with a worked example, minus without"),
    "well-formed in chat": (0.0, 0.05, "share of answers in the chat format, which it never saw"),
}


def demonstration_for(problem: math.MathProblem, i: int) -> math.MathProblem:
    """The training problem, of a hundred of the same length, that is most like `problem`: told in
    the same way, and with room for the same mistakes."""
    steps = (len(problem.changes),) * 2
    candidates = [math.problem("train", j, seed=7_000_000 + i, steps=steps) for j in range(100)]
    traps = traps_of(problem)

    def likeness(other: math.MathProblem) -> tuple[int, bool]:
        return len(traps & traps_of(other)), other.told == problem.told

    return max(candidates, key=likeness)


def traps_of(problem: math.MathProblem) -> set[math.Misconception]:
    """The misconceptions that would show in a solution of this problem."""
    return {m for m in math.Misconception if math.solve(problem, {m}) != problem.solution}


def measure(
    sampler: tinker.SamplingClient, problems: Sequence[math.MathProblem]
) -> dict[str, float]:
    """The value of every gate on these problems."""
    plain = evaluate(sampler, problems, 16, prompt=plain_prompt, stop=PLAIN_STOP, max_tokens=160)
    shown = {p.question: demonstration_for(p, i) for i, p in enumerate(problems)}

    def with_demonstration(tokenizer: object, question: str) -> list[int]:
        example = shown[question]
        prefix = f"Question: {example.question}\nAnswer: {example.solution}\n\n"
        text = f"{prefix}Question: {question}\nAnswer:"
        return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]

    aided = evaluate(
        sampler, problems, 8, prompt=with_demonstration, stop=PLAIN_STOP, max_tokens=160
    )
    chat = evaluate(sampler, problems, 8, prompt=chat_prompt, max_tokens=160)
    # 8 of the 16 samples form a mixed group unless all 8 are right or all 8 are wrong.
    c = plain.correct_counts
    none, every = _draws(16 - c, 8, 16), _draws(c, 8, 16)
    return {
        "pass@1": plain.pass_at_1.value,
        "pass@16": plain.pass_at_k.value,
        "greedy": plain.greedy.value,
        "mixed groups of 8": float(np.mean(1 - none - every)),
        "gain from a demonstration": aided.pass_at_1.value - plain.pass_at_1.value,
        "well-formed in chat": chat.well_formed,
    }


def _draws(good: np.ndarray, draws: int, total: int) -> np.ndarray:
    """Chance that all of `draws` from `total` without replacement are among `good`."""
    left = np.arange(draws)
    return np.prod(np.maximum(good[:, None] - left, 0) / (total - left), axis=1)


def card(directory: Path, values: dict[str, float], n: int) -> str:
    """The model card, from the recorded training and the measured gates."""
    record = json.loads((directory / "training.json").read_text())
    recipe = record["recipe"]
    phases = [
        f"| {number} | {p['steps']} x {p['rows']} x {p['length']} | {p['learning_rate']:g} | "
        f"{p['mixture']['thought']:.0%} | {p['mixture']['several']:.0%} |"
        for number, p in enumerate(recipe["phases"], 1)
    ]
    losses = record["losses"]
    marks = [losses[round(i * (len(losses) - 1) / 8)] for i in range(9)]
    rows = [
        f"| {name} | {values[name]:.3f} | {low:g} to {high:g} | {meaning} |"
        for name, (low, high, meaning) in GATES.items()
    ]
    return f"""<!-- written by tools/gates.py from training.json and gates.json -->
---
license: mit
library_name: transformers
---

# posttrain/{recipe["name"]}

A base model of {record["parameters"] / 1e6:.2f} million parameters for experiments in
post-training: Qwen3 architecture, {recipe["layers"]} layers, hidden size {recipe["hidden_size"]},
{recipe["heads"]} heads, context {recipe["context"]}, tied embeddings, bfloat16. It knows one
thing, the arithmetic and word problems of `posttrain/tasks/math.py`, and knows it as its teachers
did: with systematic mistakes. It has never seen the chat format of its tokenizer.

It is made for this laboratory and is of no use outside of it.

## Corpus

Generated, training split only (`tools/corpus.py`), problems of one to six steps. Each document is
written by one solver (`math.solver`): {math.CAREFUL:.0%} of them make no mistakes,
{math.CARELESS:.0%} have all {len(math.Misconception)} misconceptions, the others each one with
probability one half.
Some documents show the work, the others only answers; some hold two or three problems by the
same solver, so that the model learns to answer as it is shown.

## Training

| phase | steps x rows x tokens | learning rate | show work | several problems |
|---|---|---|---|---|
{chr(10).join(phases)}

{record["tokens"] / 1e6:.1f} million tokens without padding; AdamW, cosine schedule in each phase,
weight decay {recipe["weight_decay"]:g}, bfloat16 autocast, seed {recipe["seed"]}. It took
{record["seconds"] / 60:.0f} minutes on a shared machine ({record["hardware"]}). Rebuild it with
`python -m tools.pretrain models/{recipe["name"]}/recipe.json --compile`.

Loss in nats per token, questions included: {", ".join(f"{x:.3f} at {s}" for s, x in marks)}.

## Gates

{n} held-out problems, 16 samples each at temperature 1. `tests/test_models.py` measures them again.

| measure | value | gate | meaning |
|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--n", type=int, default=500, help="held-out problems")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    service = connect(models={"model": directory})
    sampler = service.create_sampling_client(base_model="model").result()
    values = measure(sampler, math.problems("test", arguments.n))
    write_json(directory / "gates.json", {"n": arguments.n, "values": values})
    write_text(directory / "README.md", card(directory, values, arguments.n))
    for name, (low, high, _) in GATES.items():
        verdict = "ok" if low <= values[name] <= high else "FAILS"
        print(f"{name:28} {values[name]:.3f}  [{low:g}, {high:g}]  {verdict}")


if __name__ == "__main__":
    main()

"""What a teacher must be, beside the student it is for: `python -m tools.gates.teacher`.

Run `python -m tools.scores models/teacher` first: the card shows both models' scores.

The student is the base model after the short SFT that the RLVR lesson starts from.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import tinker
import torch
from torch.nn.functional import cross_entropy

from posttrain.connect import connect, shipped_models
from posttrain.engine.model import Decoder
from posttrain.evals import Score, evaluate
from posttrain.lab.arms.rlvr import cold_start
from posttrain.lab.gallery import SCORES
from posttrain.lab.worlds import SHIPPED, math_world
from posttrain.scale import Scale
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import math
from tools.gates.card import write
from tools.gates.gate import Gate
from tools.pretrain import batches, tokenizer_of
from tools.recipe import Recipe

K = 8  # samples of a problem
TEACHER = "posttrain/teacher"
GATES = {
    "math: pass@1": Gate(0.6, 0.95, "share of samples that are right: good, and not collapsed"),
    "math: over the student": Gate(0.2, 1.0, "pass@1 minus that of the base after its SFT"),
    "math, more steps: over the student": Gate(0.2, 1.0, "the same on 5 and 6 steps"),
    "well-formed in chat": Gate(0.95, 1.0, "share of answers that close with the end token"),
    "calibration": Gate(
        -0.01, 0.01, "cross-entropy on held-out documents minus mean entropy, nats per token"
    ),
}


# Where the teacher is not clearly better than the base, and why.
NO_BETTER = {
    "best moves, nim": (
        "where it shows its work, it mostly pairs the wrong numbers: an eighth of its corpus, of "
        "which a third is Nim, was too little to learn that arithmetic"
    ),
    "old skill, before it is taught": "neither has met it",
    "new skill, before it is taught": "neither has met it",
}


def beside(teacher: Path, student: Path) -> str:
    """A section of the card: the scores of both models on every task, as `tools.scores` found them.

    Raises:
        ValueError: the teacher is not clearly better at something that NO_BETTER does not name, or
            is at something that it names.
    """
    ours, theirs = (json.loads((m / SCORES).read_text())["tasks"] for m in (teacher, student))
    lines = ["| task | measure | teacher | base |", "|---|---|---|---|"]
    for task, measures in theirs.items():
        for name, value in measures.items():
            own, other = (Estimate.from_json(row) for row in (ours[task][name], value))
            if (own.low > other.high) == (name in NO_BETTER):
                raise ValueError(f"{task}, {name}: {own} beside {other}, which NO_BETTER belies")
            lines.append(f"| {task} | {name} | {own} | {other} |")
    reasons = [f"- {name}: {why}." for name, why in NO_BETTER.items()]
    rows = [*lines, "", "Not clearly better, and why:", "", *reasons]
    return "\n## Beside the base\n\n" + "\n".join(rows) + "\n"


def measure(
    teacher: tinker.SamplingClient, student: tinker.SamplingClient, directory: Path, n: int
) -> dict[str, Estimate]:
    """Every gate on `n` held-out problems of each split."""
    scores = {}
    for split in ("test", "ood"):
        problems = math.problems(split, n)
        scores[split] = [evaluate(s, problems, K, max_tokens=200) for s in (teacher, student)]
    (own, _), formed = scores["test"], scores["test"][0].well_formed
    return {
        "math: pass@1": own.pass_at_1,
        "math: over the student": lead(*scores["test"]),
        "math, more steps: over the student": lead(*scores["ood"]),
        "well-formed in chat": Estimate(formed, formed, formed),
        "calibration": calibration(directory),
    }


def lead(teacher: Score, student: Score) -> Estimate:
    """Difference of pass@1, paired by problem."""
    return bootstrap_mean((teacher.correct_counts - student.correct_counts) / K)


@torch.no_grad()
def calibration(directory: Path) -> Estimate:
    """How much more the documents surprise the model than it expects, row by row of held-out ones.

    A model that is as sure as it should be has a cross-entropy equal to its mean entropy.
    """
    recipe = Recipe.load(directory / "recipe.json")
    tokenizer = tokenizer_of(recipe, directory)
    pad = tokenizer.pad_token_id
    decoder = Decoder.load(directory)
    batch = next(batches(replace(recipe, seed=recipe.seed + 1000), tokenizer, recipe.steps - 1))
    logits = decoder.logits(decoder(batch[:, :-1])).log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1)
    targets = batch[:, 1:]
    surprise = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    real = targets != pad
    gaps = ((surprise - entropy) * real).sum(-1) / real.sum(-1)
    return bootstrap_mean(gaps.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=shipped_models()[TEACHER])
    parser.add_argument("--n", type=int, default=300, help="held-out problems of each split")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    service = connect(models={"teacher": directory, SHIPPED: shipped_models()[SHIPPED]})
    teacher = service.create_sampling_client(base_model="teacher").result()
    world = math_world(Scale.LAPTOP)
    with tempfile.TemporaryDirectory() as folder:
        student = cold_start(service, world, Path(folder), 0).sampler
    values = measure(teacher, student, directory, arguments.n)
    for name, value in values.items():
        print(f"{name:40} {value}  {'met' if GATES[name].met(value.value) else 'NOT MET'}")
    extra = beside(directory, shipped_models()[SHIPPED])
    write(directory, GATES, values, arguments.n, extra)


if __name__ == "__main__":
    main()

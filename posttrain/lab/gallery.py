"""The tasks of the lab's world with real items: `posttrain tasks` and docs/tasks.md show them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.connect import shipped_models
from posttrain.stats import Estimate
from posttrain.tasks import code, continual, math, records, rubrics, stories, tools
from posttrain.tasks.draws import Split
from posttrain.tasks.games.position import GAMES, position
from posttrain.tasks.gold import gold

SCORES = "scores.json"  # beside a model; tools/scores.py writes it
ROOT = Path(__file__).resolve().parents[2]
MEASURED = "benchmarks/tasks.json"
INTRODUCTION = """# Tasks

Small models need small worlds. An item of a task is a function of a seed and a number, so there is
no end of them, and the same on every machine. Train, validation and test are disjoint by a hash of
what makes an item itself. The truth is known exactly: each task has a checker that cannot be wrong.
"""
SPEED = """## Speed

A text task should make 20,000 items a second and a verifier check 50,000 answers, so that neither
is what training waits for. What is slower, and why: an item of a held-out split is drawn until its
hash falls there, about ten times; an episode is three records; a judgement, of which the judge's
training text is made, is a text that somebody writes and a criterion that is checked. A story is
checked sentence by sentence, and sentences that were read before are remembered, hence two columns.
A preference is two qualities.
"""


@dataclass(frozen=True)
class Exhibit:
    """One task, as a newcomer should meet it."""

    name: str
    module: str
    about: str  # what is asked, and what is checked
    splits: str
    difficulty: str
    show: Callable[[int], Sequence[str]]  # seed -> items as text

    def text(self, seed: int = 0) -> str:
        """The exhibit in Markdown."""
        items = "\n\n".join(self.show(seed))
        return (
            f"## {self.name}\n\n{self.about}\n\n- Splits: {self.splits}\n"
            f"- Difficulty: {self.difficulty}\n- Code: `{self.module}`\n\n```text\n{items}\n```\n"
        )


def _math(seed: int) -> list[str]:
    every = set(math.Misconception)
    long = math.stream(Split.OOD, seed=seed)
    trap = next(p for p in long if not p.grade(math.solve(p, every)).correct)
    items, wrong = [math.problem(Split.TRAIN, 0, seed=seed), trap], math.solve(trap, every)
    return [
        *(f"{item.question}\n  right: {item.solution}" for item in items),
        f"the same question, answered with every misconception\n  wrong: {wrong}",
    ]


def _stories(seed: int) -> list[str]:
    request, rng = stories.story(Split.TRAIN, 0, seed=seed), random.Random(seed)
    flaws = {stories.Flaw.FORGETS, stories.Flaw.MIXES_MOODS}
    told = {"good": request.solution, "poor": stories.write(request, rng, flaws)}
    graded = [
        f"  {k}, hidden quality {gold(request, text):.1f}: {text}" for k, text in told.items()
    ]
    return ["\n".join([request.question, *graded])]


def _rubrics(seed: int) -> list[str]:
    request = stories.story(Split.TRAIN, 1, seed=seed)
    flawed = stories.write(request, random.Random(seed), {stories.Flaw.REPEATS})
    lines = [request.question, f"  {flawed}"]
    for criterion in rubrics.rubric(request):
        verdict = "yes" if rubrics.check(criterion, request, flawed) else "no"
        lines.append(f"  {criterion.importance.value}, {criterion.text}: {verdict}")
    return ["\n".join(lines)]


def _games(seed: int) -> list[str]:
    found = [position(name, Split.TRAIN, 1, seed=seed) for name in GAMES]
    return [f"{item.question}\n  a best move: {item.solution}" for item in found]


def _tools(seed: int) -> list[str]:
    items = [tools.problem(Split.TRAIN, i, seed=seed) for i in range(20)]
    chosen = [next(i for i in items if i.helps), next(i for i in items if not i.helps)]
    return [f"{item.question}\n  {item.solution}" for item in chosen]


def _code(seed: int) -> list[str]:
    item = code.problem(Split.TRAIN, 0, seed=seed)
    return [f"{item.question}\n  right: {item.solution}\n  a hack: {item.lookup()}"]


def _continual(seed: int) -> list[str]:
    old, new = (
        continual.ledger(Split.TRAIN, 0, seed=seed),
        records.record(Split.TRAIN, 0, seed=seed),
    )
    return [
        f"old skill: {old.question}\n  {old.solution}",
        f"new skill: {new.question}\n  {new.solution}\n  (one of {len([*new.right_answers()])})",
    ]


USUAL = "train 80 %, validation 10 %, test 10 %"
GALLERY = {
    exhibit.name: exhibit
    for exhibit in (
        Exhibit(
            "math", "posttrain/tasks/math.py",
            "Word problems and sums. A verifier checks the final answer, another one each step. "
            "The corpus of the base model is written by people with misconceptions.",
            f"{USUAL}; ood has more steps", "the number of steps", _math,
        ),
        Exhibit(
            "stories", "posttrain/tasks/stories.py",
            "A short story on request. Its quality is hidden: `posttrain/tasks/gold.py` computes "
            "it, evaluation and a simulated human (`posttrain/tasks/human.py`) read it, training "
            "cannot import it.",
            f"{USUAL}; ood has pairs of hero and mood that are never asked for in training",
            "the number of demands", _stories,
        ),
        Exhibit(
            "rubrics", "posttrain/tasks/rubrics.py",
            "Criteria for one text, over stories and worked explanations, some of two conditions. "
            "Each has an exact checker; a language model judges from the same words.",
            "those of the texts", "the kinds of criteria", _rubrics,
        ),
        Exhibit(
            "games", "posttrain/tasks/games/",
            "Nim, tic-tac-toe and Kuhn poker behind one text interface, on OpenSpiel. Best moves "
            "and the exploitability of a poker player are exact.",
            "by position up to symmetry; ood is Nim with larger heaps; poker has only train",
            "heaps, free cells", _games,
        ),
        Exhibit(
            "tools", "posttrain/tasks/tools.py",
            "Sums with a calculator at hand. The tool's turns are marked, so that a loss can leave "
            "them out; a call has a price.",
            f"{USUAL}; ood has longer numbers", "digits of the numbers", _tools,
        ),
        Exhibit(
            "code", "posttrain/tasks/code.py",
            "Programs in a small stack language, run within limits. Two tests are shown, twelve "
            "are hidden: a reward made of the shown ones can be hacked.",
            f"{USUAL}; ood has larger formulas", "operators in the formula", _code,
        ),
        Exhibit(
            "continual", "posttrain/tasks/continual.py, posttrain/tasks/records.py",
            "An old skill that is taught first, and a new one unlike it with many right answers: "
            "what does learning the second cost the first?",
            f"{USUAL}; ood has more steps, or more fields", "steps, fields", _continual,
        ),
    )
}  # fmt: skip


def scores(task: str) -> dict[str, dict[str, Estimate]]:
    """What the shipped models score: measure -> model -> estimate, of those that were measured."""
    found: dict[str, dict[str, Estimate]] = {}
    for model, directory in shipped_models().items():
        file = directory / SCORES
        stored = json.loads(file.read_text())["tasks"].get(task, {}) if file.exists() else {}
        for measure, value in stored.items():
            found.setdefault(measure, {})[model] = Estimate.from_json(value)
    return found


def speed(measured: Path) -> str:
    """What benchmarks/tasks.py measured, in Markdown."""
    found = json.loads(measured.read_text())
    rows = ["| items generated | a second |", "| --- | --- |"]
    rows += [
        f"| {name} | {best:,.0f} |" for name, (_, best) in found["rates"]["generators"].items()
    ]
    rows += ["", "| answers checked | new texts, a second | known ones |", "| --- | --- | --- |"]
    rows += [
        f"| {name} | {first:,.0f} | {best:,.0f} |"
        for name, (first, best) in found["rates"]["verifiers"].items()
    ]
    dirty = "" if found["dirty"] is False else ", with files changed since"
    return (
        f"{SPEED}\nMeasured by `{found['command']}` on one core of {found['processor']}, Python "
        f"{found['python']}, at commit {found['commit'][:12]}{dirty}.\n\n" + "\n".join(rows) + "\n"
    )


def write(path: Path) -> None:
    """The page of all tasks."""
    note = "<!-- written by posttrain/lab/gallery.py: python -m posttrain.lab.gallery -->\n"
    exhibits = [exhibit.text() for exhibit in GALLERY.values()]
    path.write_text(note + "\n".join([INTRODUCTION, *exhibits, speed(ROOT / MEASURED)]))


if __name__ == "__main__":
    write(ROOT / "docs/tasks.md")

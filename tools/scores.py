"""What a model scores on every task: `python -m tools.scores models/base` writes `scores.json`.

`posttrain tasks NAME` shows them. Held-out items, asked in the form that the shipped models were
pretrained on, 4 samples each at temperature 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tinker

from posttrain.connect import connect
from posttrain.datums import plain_prompt
from posttrain.evals import evaluate
from posttrain.lab.gallery import SCORES
from posttrain.renderers import PLAIN_STOP
from posttrain.runs import write_json
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import code, continual, math, records, rubrics, stories, tools
from posttrain.tasks.games import GAMES, positions
from posttrain.tasks.gold import gold
from posttrain.tasks.problem import Item, Problem
from tools.gates.answers import answers
from tools.gates.games import DEALS
from tools.gates.tools import PlainSpeaker

K = 4  # samples of an item
MAX_TOKENS = 200

Scores = dict[str, Estimate]
Score = Callable[[tinker.SamplingClient, int], Scores]  # (sampler, items)


def right(sampler: tinker.SamplingClient, problems: Sequence[Problem]) -> Estimate:
    """Share of samples that are right."""
    score = evaluate(
        sampler, problems, K, prompt=plain_prompt, stop=PLAIN_STOP, max_tokens=MAX_TOKENS
    )
    return score.pass_at_1


def math_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    splits = {"test": "pass@1", "ood": "pass@1, more steps"}
    return {name: right(sampler, math.problems(split, n)) for split, name in splits.items()}


def story_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    requests = stories.stories("test", n)
    told = answers(sampler, [r.question for r in requests], K, max_tokens=MAX_TOKENS)
    rows = [[gold(r, text) for text in texts] for r, texts in zip(requests, told, strict=True)]
    return {"hidden quality (about 10 is flawless)": bootstrap_mean(rows)}


def rubric_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    """Share of criteria that are as they should be: true, or false if they are pitfalls."""
    found = {}
    items: dict[str, Sequence[Item]] = {
        "stories": stories.stories("test", n),
        "explanations": math.problems("test", n),
    }
    for name, asked in items.items():
        told = answers(sampler, [i.question for i in asked], K, max_tokens=MAX_TOKENS)
        rows = []
        for item, texts in zip(asked, told, strict=True):
            criteria = rubrics.rubric(item)
            good = [
                rubrics.check(c, item, text) != (c.importance is rubrics.Importance.PITFALL)
                for text in texts
                for c in criteria
            ]
            rows.append(sum(good) / len(good))
        found[f"criteria met, {name}"] = bootstrap_mean(rows)
    return found


def game_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    found = {}
    for game, rules in GAMES.items():
        held_out = "test" in rules.levels
        asked = positions(game, "test", n) if held_out else positions(game, "train", DEALS)
        found[f"best moves, {game}"] = right(sampler, asked)
    return found


def tool_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    problems = tools.problems("test", n)
    held = tools.converse([p for p in problems for _ in range(K)], PlainSpeaker(sampler, 0))
    correct = [said.grade.correct for said in held]
    return {"right, with the calculator": bootstrap_mean(
        [correct[i : i + K] for i in range(0, len(correct), K)]
    )}  # fmt: skip


def code_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    return {"pass@1, hidden tests": right(sampler, code.problems("test", n))}


def continual_scores(sampler: tinker.SamplingClient, n: int) -> Scores:
    return {
        "old skill, before it is taught": right(sampler, continual.ledgers("test", n)),
        "new skill, before it is taught": right(sampler, records.records("test", n)),
    }


TASKS: Mapping[str, Score] = {
    "math": math_scores,
    "stories": story_scores,
    "rubrics": rubric_scores,
    "games": game_scores,
    "tools": tool_scores,
    "code": code_scores,
    "continual": continual_scores,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--n", type=int, default=200, help="held-out items of each task")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    sampler = connect(models={"model": directory}).create_sampling_client(base_model="model")
    found = {}
    for name, score in TASKS.items():
        scores = score(sampler.result(), arguments.n)
        found[name] = {measure: value.to_json() for measure, value in scores.items()}
        for measure, value in scores.items():
            print(f"{name:10} {measure:40} {value}", flush=True)
    write_json(directory / SCORES, {"n": arguments.n, "k": K, "tasks": found})


if __name__ == "__main__":
    main()

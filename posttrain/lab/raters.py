"""Who compares answers: labels for training, verdicts for measuring.

For stories that is the simulated human, who sees the hidden quality through noise, and the hidden
quality itself. For published prompts it is one judge model in both roles, so a policy that learned
to please this judge also wins by it: there a win rate says how well it learned, not how good it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tinker

from posttrain.judges import pairwise
from posttrain.lab.worlds import World
from posttrain.pairs import Label
from posttrain.tasks import human, prose
from posttrain.tasks.gold import gold
from posttrain.win_rate import Judge


@dataclass(frozen=True)
class Rater:
    """Somebody who compares answers, and what else can be said about one."""

    label: Label  # for training
    judge: Judge  # for measuring
    gold: Callable[[Any, str], float] | None  # hidden quality of an answer, where it is known
    readable: Callable[[str], bool]  # whether an answer has the form that the task asks for


def by_gold(item: Any, a: str, b: str) -> float:
    """The verdict of the hidden quality, without noise: 1, 0.5 or 0."""
    better, worse = gold(item, a), gold(item, b)
    return 0.5 if better == worse else float(better > worse)


READER = Rater(label=human.prefers, judge=by_gold, gold=gold, readable=prose.well_formed)


def rater_of(service: tinker.ServiceClient, world: World) -> Rater:
    """Who compares answers in this world.

    Raises:
        ValueError: nobody does: answers to the task are right or wrong.
    """
    if world.task in ("stories", "rubrics"):
        return READER
    if world.judge is None:
        raise ValueError(f"nobody compares answers to the task {world.task!r}; they are graded")
    judge = pairwise(service.create_sampling_client(base_model=world.judge).result())

    def label(item: Any, a: str, b: str, seed: int) -> bool | None:
        first, second = judge(item, a, b), judge(item, b, a)
        if first is None or second is None or first == second:
            return None
        return first > second

    return Rater(label=label, judge=judge, gold=None, readable=lambda text: bool(text.strip()))

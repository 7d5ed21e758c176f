"""Rubrics: each kind of condition sometimes holds and sometimes does not.

A condition that always or never holds among the samples of a group gives no advantage, so nobody
could learn it from a rubric's reward.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import tinker

from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import math
from posttrain.tasks.criteria import Kind, holds
from posttrain.tasks.problem import Item
from posttrain.tasks.rubrics import KINDS, rubric
from posttrain.tasks.stories import stories
from tools.gates.answers import answers
from tools.gates.gate import Gate

MAX_TOKENS = 200


def name(kind: Kind) -> str:
    return f"rubrics: {kind.value.replace('{}', '...')}"


GATES = {name(kind): Gate(0.1, 0.9, "share of texts of which this is true") for kind in KINDS}


def measure(sampler: tinker.SamplingClient, n: int, seed: int = 0) -> dict[str, Estimate]:
    """Every gate, on `n` held-out requests and as many problems, 4 samples each."""
    items: list[Item] = [*stories("test", n, seed=seed), *math.problems("test", n, seed=seed)]
    told = answers(sampler, [i.question for i in items], 4, seed=seed, max_tokens=MAX_TOKENS)
    shares: dict[Kind, list[float]] = defaultdict(list)  # of each item that asks for the kind
    for item, texts in zip(items, told, strict=True):
        for kind, share in conditions(item, texts):
            shares[kind].append(share)
    return {name(kind): bootstrap_mean(shares[kind]) for kind in KINDS if shares[kind]}


def conditions(item: Item, texts: Sequence[str]) -> Iterator[tuple[Kind, float]]:
    """Every condition of an item's rubric, and the share of texts that meet it."""
    for condition in itertools.chain.from_iterable(c.conditions for c in rubric(item)):
        yield condition.kind, sum(holds(condition, item, text) for text in texts) / len(texts)

"""Stories: readable, and different enough in quality that somebody can prefer one."""

from __future__ import annotations

import itertools

import tinker

from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks.gold import gold
from posttrain.tasks.human import probability
from posttrain.tasks.prose import well_formed
from posttrain.tasks.stories import Request, stories
from tools.gates.answers import answers
from tools.gates.gate import Gate

GATES = {
    "stories: well-formed": Gate(0.3, 0.8, "share of samples with nothing but grammatical lines"),
    "stories: right preferences": Gate(
        0.75, 0.9, "chance that the human prefers the better one of two samples"
    ),
}
MAX_TOKENS = 200


def measure(sampler: tinker.SamplingClient, n: int, seed: int = 0) -> dict[str, Estimate]:
    """Both gates on `n` held-out requests, 8 samples each."""
    requests = stories("test", n, seed=seed)
    told = answers(sampler, [r.question for r in requests], 8, seed=seed, max_tokens=MAX_TOKENS)
    formed = [[well_formed(text) for text in texts] for texts in told]
    agreed = [agreement(r, texts) for r, texts in zip(requests, told, strict=True)]
    return {
        "stories: well-formed": bootstrap_mean(formed),
        "stories: right preferences": bootstrap_mean([a for a in agreed if a is not None]),
    }


def agreement(request: Request, texts: list[str]) -> float | None:
    """Mean chance that the better text of a pair is preferred; None if all are equally good."""
    pairs = [
        (a, b) if gold(request, a) > gold(request, b) else (b, a)
        for a, b in itertools.combinations(sorted(set(texts)), 2)
        if gold(request, a) != gold(request, b)
    ]
    if not pairs:
        return None
    return sum(probability(request, better, worse) for better, worse in pairs) / len(pairs)

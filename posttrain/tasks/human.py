"""A simulated human who compares two stories: Bradley-Terry draws from the hidden quality.

    P(a preferred to b) = sigmoid((gold(a) - gold(b)) / temperature)

(Bradley & Terry 1952; for language models Christiano et al. 2017, arXiv:1706.03741). At the
default temperature a label agrees with gold on about 86 % of pairs of stories by random authors.
A bias can be planted: a share of comparisons is then decided by length alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.tasks.draws import picks, seeded
from posttrain.tasks.gold import gold
from posttrain.tasks.problem import Preference
from posttrain.tasks.stories import Request


@dataclass(frozen=True)
class Human:
    """How carefully somebody compares."""

    temperature: float = 1.0  # points of gold per unit of logit; 0 always prefers the better text
    longer_wins: float = 0.5  # chance of the longer of two equally good texts; 0.5 is no bias

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and at least 0, not {self.temperature}")
        if not 0.5 <= self.longer_wins <= 1:
            raise ValueError(f"longer_wins must be within 0.5 and 1, not {self.longer_wins}")


FAIR = Human()
LONG_WINDED = Human(longer_wins=0.6)  # the planted bias: one in five looks at the length only


def probability(request: Request, a: str, b: str, human: Human = FAIR) -> float:
    """P(`human` prefers `a` to `b`). Length is counted in words; equal lengths are no reason."""
    careless = 2 * human.longer_wins - 1
    longer = len(a.split()) - len(b.split())
    by_length = 0.5 if longer == 0 else float(longer > 0)
    difference = gold(request, a) - gold(request, b)
    return careless * by_length + (1 - careless) * _sigmoid(difference, human.temperature)


def prefers(request: Request, a: str, b: str, seed: int, human: Human = FAIR) -> bool:
    """Whether `human` prefers `a` to `b` when asked with this seed.

    A pair and a seed always give the same answer, whichever of the two comes first; other seeds
    are independent draws. Two equal texts are decided by a coin.
    """
    first, second = sorted((a, b))
    told = "\0".join([str(seed), request.key, first, second])
    digest = hashlib.sha256(told.encode(errors="surrogatepass")).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    return (uniform < probability(request, first, second, human)) == (a == first)


def preferences(
    request: Request,
    texts: Sequence[str],
    seed: int,
    *,
    pairs: int | None = None,
    human: Human = FAIR,
) -> list[Preference]:
    """Labelled pairs of different texts that answer the same request.

    Args:
        pairs: how many, drawn without replacement; by default all of them. Fewer come back
            where there are fewer. Equal texts are no pair.
    """
    every = list(itertools.combinations(sorted(set(texts)), 2))
    if pairs is not None and pairs < len(every):
        every = picks(seeded("pairs", seed, request.key), every, pairs)
    return [
        Preference(request.question, a, b)
        if prefers(request, a, b, seed, human)
        else Preference(request.question, b, a)
        for a, b in every
    ]


def _sigmoid(difference: float, temperature: float) -> float:
    if temperature == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return 0.5 * (1 + math.tanh(difference / temperature / 2))  # does not overflow

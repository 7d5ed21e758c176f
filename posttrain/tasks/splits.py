"""Endless sequences of items from a seed, divided into splits by a hash."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import TypeVar

from posttrain.tasks.math import Split
from posttrain.tasks.problem import Problem

P = TypeVar("P", bound=Problem)
PATIENCE = 2000  # draws in a row without a new item, after which there are no more


def split_of(family: str) -> Split:
    """Train, validation or test by a hash: 80 %, 10 % and 10 % of all families.

    Args:
        family: what must not be in two splits. Items that tell each other's answer, such as a
            board and its mirror image, share one.
    """
    bucket = hashlib.sha256(family.encode()).digest()[0]
    if bucket < 205:
        return Split.TRAIN
    return Split.VALIDATION if bucket < 231 else Split.TEST


def source(*identity: object) -> random.Random:
    """The random numbers of one item: the same for the same identity, on every machine."""
    digest = hashlib.sha256(":".join(map(str, identity)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def distinct(item: Callable[[int], P], n: int) -> list[P]:
    """The first `n` items of the sequence `item(0), item(1), ...` with different keys.

    Raises:
        ValueError: the sequence does not have so many.
    """
    found: dict[str, P] = {}
    last_new = 0
    for i in itertools.count():
        if len(found) >= n:
            break
        if i - last_new > PATIENCE + 20 * len(found):
            raise ValueError(f"there are only {len(found)} different problems here, not {n}")
        candidate = item(i)
        if candidate.key not in found:
            found[candidate.key] = candidate
            last_new = i
    return list(found.values())


def stream(item: Callable[[int], P]) -> Iterator[P]:
    """All items of a sequence, without end."""
    return (item(i) for i in itertools.count())

"""Random draws that are the same on every machine, and the division into splits.

`random.Random.random()` is the one method whose sequence Python guarantees across versions, so
items are drawn with it alone, from generators seeded by a hash.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

from posttrain.tasks.problem import Item

T = TypeVar("T")
AnyItem = TypeVar("AnyItem", bound=Item)
PATIENCE = 2000  # draws without anything new after which a small pool counts as exhausted


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    OOD = "ood"


def seeded(*parts: object) -> random.Random:
    """A generator that follows from `parts` alone: from the text that they are written as."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`, each with the same probability."""
    return options[int(rng.random() * len(options))]


def picks(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different positions of `options`, in random order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def known_split(split: Split | str) -> Split:
    """The split of this name.

    Raises:
        ValueError: there is none; the text lists the known ones.
    """
    try:
        return Split(split)
    except ValueError:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(Split)}") from None


def check_range(items: str, unit: str, asked: tuple[int, int], limits: tuple[int, int]) -> None:
    """Check a difficulty: `asked` and `limits` are each (least, most) of `unit`.

    Raises:
        ValueError: `asked` is not within `limits`; the text says what `items` have.
    """
    (least, most), (low, high) = asked, limits
    if not low <= least <= most <= high:
        raise ValueError(f"{items} have {low} to {high} {unit}, not {least} to {most}")


def split_by_hash(key: str) -> Split:
    """80 % train, 10 % validation, 10 % test.

    `key` names what must not be in two splits: items that tell each other's answer, such as a
    board and its mirror image, share one.
    """
    bucket = hashlib.sha256(key.encode()).digest()[0]
    if bucket < 205:
        return Split.TRAIN
    return Split.VALIDATION if bucket < 231 else Split.TEST


def distinct(items: Iterable[AnyItem], n: int) -> list[AnyItem]:
    """The first `n` items with different keys.

    Raises:
        ValueError: the pool has fewer, as far as `PATIENCE` draws in a row can tell.
    """
    found: dict[str, AnyItem] = {}
    misses = 0
    for item in items:
        if len(found) >= n:
            break
        misses = misses + 1 if item.key in found else 0
        found.setdefault(item.key, item)
        if misses > PATIENCE + 20 * len(found):
            raise ValueError(f"there are only {len(found)} different items here, not {n}")
    return list(found.values())

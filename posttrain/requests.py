"""Requests to a server that batches them: many in flight, and a seed for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np


def results(asks: Iterable[Callable[[], Any]], ahead: int = 128) -> Iterator[Any]:
    """The results of the futures that `asks` return, in order, with `ahead` of them in flight.

    More would only wait in the server's queue, each polled for by the client meanwhile.
    """
    waiting: deque[Any] = deque()
    for ask in asks:
        if len(waiting) == ahead:
            yield waiting.popleft().result()
        waiting.append(ask())
    while waiting:
        yield waiting.popleft().result()


def item_seed(*parts: int) -> int:
    """The sampling seed that a run's seed and an item's number give: 31 bits, unrelated between
    items. More numbers, such as the turn of a conversation, give further seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)

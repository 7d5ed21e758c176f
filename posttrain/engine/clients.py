"""Training clients, and how much memory they hold between two optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.engine import models
from posttrain.engine.records import RunRecord
from posttrain.engine.trainer import Trainer


@dataclass
class Client:
    """A training client. `trainer` is made by the worker, and only it may touch it."""

    record: RunRecord
    trainer: Trainer | None = None
    used: float = field(default_factory=time.time)


def make_room(clients: Sequence[Client]) -> None:
    """Bound the weights, arranged for computing, that clients keep until an optimizer step.

    The last used stays, and earlier ones as far as all fit in `models.ROOM` bytes. The others
    arrange theirs anew when they are used again, to the same bits.
    """
    holding = [c.trainer for c in sorted(clients, key=lambda client: -client.used) if c.trainer]
    room = models.ROOM
    for place, trainer in enumerate(t for t in holding if t.packed is not None):
        assert trainer.packed is not None
        room -= trainer.packed.owned
        if place and room < 0:
            trainer.packed = None

"""How many tokens were trained and sampled: by hour, session and training run.

Counted when a request has succeeded. Each engine process writes a file of its own,
`<root>/usage/<uuid>.json`, at most a minute late.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from posttrain.engine.durable import read_json, write_atomically

HOUR = 3600
TRAINING, PREFILL, SAMPLED, CHECKPOINT = (
    "training",
    "sampling_prefill",
    "sampling_sample",
    "checkpoint",
)


class Key(NamedTuple):
    hour: int  # hours since the epoch
    kind: str
    session_id: str
    base_model: str
    run: str | None  # None for samples of a base model


class Usage:
    """Threads may add; the event loop reads."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "usage"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file = self.directory / f"{uuid.uuid4().hex}.json"
        self.counts: Counter[Key] = Counter()
        self.lock = threading.Lock()
        self.written = 0  # the total that was last written

    def add(
        self, now: float, kind: str, session_id: str, base_model: str, run: str | None, count: int
    ) -> None:
        """`count` tokens (or checkpoints) at `now`, in seconds since the epoch."""
        with self.lock:
            self.counts[Key(int(now) // HOUR, kind, session_id, base_model, run)] += count

    def flush(self) -> None:
        with self.lock:
            rows = [[*key, count] for key, count in self.counts.items()]
            total = self.counts.total()
        if total != self.written:
            write_atomically(self.file, {"rows": rows}, durable=False)
            self.written = total

    def between(self, start: float, end: float) -> Iterator[tuple[Key, int]]:
        """Of all engines over this directory, by hour and then by falling count."""
        found: Counter[Key] = Counter()
        with self.lock:
            found.update(self.counts)
        for path in self.directory.glob("[!.]*.json"):
            raw = read_json(path) if path != self.file else None
            for row in (raw or {}).get("rows", []):
                found[Key(*row[:-1])] += row[-1]
        inside = [item for item in found.items() if start <= item[0].hour * HOUR < end]
        yield from sorted(inside, key=lambda item: (item[0].hour, -item[1], json.dumps(item[0])))

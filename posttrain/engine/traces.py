"""What a session asked for and when it was answered, as a trace that Perfetto opens.

The format is Chrome's Trace Event Format (complete events, `"ph": "X"`).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from typing import NamedTuple

KEPT = 10_000  # latest requests of a session
SESSIONS = 100  # latest sessions


class Span(NamedTuple):
    """One request, from its arrival to its answer, waiting included; seconds since the epoch."""

    name: str
    client: str  # the training run or sampler
    start: float
    end: float


class Traces:
    """By session, in memory. A session's trace ends with the engine."""

    def __init__(self) -> None:
        self.spans: defaultdict[str, deque[Span]] = defaultdict(lambda: deque(maxlen=KEPT))

    def add(self, session_id: str, span: Span) -> None:
        # Thousands of requests name the same few clients.
        self.spans[session_id].append(span._replace(client=sys.intern(span.client)))
        if len(self.spans) > SESSIONS:
            del self.spans[next(iter(self.spans))]

    def export(self, session_id: str) -> str:
        """JSON with one row for each training run and sampler."""
        spans = list(self.spans.get(session_id, ()))
        clients = list(dict.fromkeys(span.client for span in spans))
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": client}}
            for row, client in enumerate(clients)
        ]
        events = [
            {
                "name": span.name,
                "cat": "tinker",
                "ph": "X",
                "ts": span.start * 1e6,  # microseconds
                "dur": (span.end - span.start) * 1e6,
                "pid": 1,
                "tid": clients.index(span.client),
            }
            for span in spans
        ]
        return json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"})

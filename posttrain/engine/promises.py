"""Results that are not there yet, and those waiting to be fetched.

Used from the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from posttrain.engine import limits
from posttrain.engine.paths import session_of

HOLD = 25.0  # seconds a poll waits; the client gives up after 45
FETCHED = 120.0  # seconds a fetched result is kept: its delivery may have failed
UNFETCHED = 24 * 3600.0  # seconds a finished result waits for a client that sleeps
SWEEP = 60.0  # seconds between removals


@dataclass(frozen=True)
class Answer:
    """The body of a response to `retrieve_future`, protobuf or JSON."""

    body: bytes
    media_type: str = "application/json"


@dataclass
class Promise:
    client: str = ""  # the training client, sampler or session that asked
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    answer: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    settled: float | None = None  # when it was answered
    fetched: float | None = None  # when that was last fetched, or its session ended

    def settle(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)
            self.settled = time.monotonic()

    @property
    def stale(self) -> bool:
        if self.settled is None:
            return False  # still being computed
        now = time.monotonic()
        if self.fetched is not None:
            return now > max(self.fetched, self.settled) + FETCHED
        return now > self.settled + UNFETCHED


class Promises:
    """All promises by request id, and by the (client, sequence number) that a retry repeats."""

    def __init__(self) -> None:
        self.by_id: dict[str, Promise] = {}
        self.by_sequence: dict[tuple[str, int], str] = {}
        self.kept = 0  # bytes of results
        self.swept = time.monotonic()

    def repeated(self, client: str, seq_id: int | None) -> Promise | None:
        """The promise that was already given for this request, if it is a retry."""
        if seq_id is None:
            return None
        return self.by_id.get(self.by_sequence.get((client, seq_id), ""))

    def new(self, client: str = "", seq_id: int | None = None) -> Promise:
        self.sweep()
        promise = Promise(client)
        self.by_id[promise.request_id] = promise
        if seq_id is not None:
            self.by_sequence[client, seq_id] = promise.request_id
        return promise

    def settle(self, promise: Promise, answer: Answer) -> None:
        """Answer a promise, and make room for its result where there is none left."""
        if promise.answer.done():
            return
        promise.settle(answer)
        self.kept += len(answer.body)
        if self.kept > limits.KEPT_BYTES or len(self.by_id) > limits.KEPT:
            # The oldest first, down to half. What is still being computed stays.
            for request_id, old in list(self.by_id.items()):
                if old.answer.done() and old is not promise:
                    self.forget(request_id)
                if self.kept <= limits.KEPT_BYTES // 2 and len(self.by_id) <= limits.KEPT // 2:
                    break

    def forget(self, request_id: str) -> None:
        promise = self.by_id.pop(request_id)
        self.kept -= len(promise.answer.result().body)

    def end(self, session_id: str) -> None:
        """Keep the results of a session that has ended no longer than if they had been fetched."""
        now = time.monotonic()
        for promise in self.by_id.values():
            if session_of(promise.client) == session_id and promise.fetched is None:
                promise.fetched = now

    async def retrieve(self, request_id: str, hold: float = HOLD) -> Answer | None:
        """The answer, or None if it is still not there after `hold` seconds.

        Raises:
            KeyError: no such promise, or its time has passed.
        """
        promise = self.by_id[request_id]
        await asyncio.wait([promise.answer], timeout=hold)
        if not promise.answer.done():
            return None
        promise.fetched = time.monotonic()
        return promise.answer.result()

    def sweep(self) -> None:
        if time.monotonic() < self.swept + SWEEP:
            return
        self.swept = time.monotonic()
        for request_id in [key for key, promise in self.by_id.items() if promise.stale]:
            self.forget(request_id)
        self.by_sequence = {k: v for k, v in self.by_sequence.items() if v in self.by_id}

"""The one thread that computes.

Jobs (everything but sampling) run one by one in the order of their arrival. Sampling requests
for the same weights share a batch: those that wait are admitted together, and join a batch that
is already running. Between two jobs sampling gets its share of time, so neither starves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from posttrain.engine.config import DecoderConfig
from posttrain.engine.sample import Request, Result
from posttrain.engine.sampler import Generation

logger = logging.getLogger(__name__)

WINDOW = 0.003  # seconds a first sampling request waits for others
STEPS = 16  # tokens between admissions to a running batch, unless many wait
ROWS = 512  # samples generated at a time with one set of weights
CELLS = 2**29  # numbers in the key-value cache of a batch: 2 GiB in float32
SLICE = 0.1  # seconds of sampling between two jobs

Done = Callable[[Result | Exception], None]


@dataclass
class Waiting:
    """A sampling request. `start` gives the decoder's empty batch, should none be running."""

    key: str
    config: DecoderConfig
    start: Callable[[], Generation]
    request: Request
    done: Done


@dataclass
class Running:
    generation: Generation
    steps: int = 0
    unfinished: list[tuple[Result, Done]] = field(default_factory=list)


class Worker(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="posttrain-compute", daemon=True)
        self.wake = threading.Condition()
        self.jobs: deque[Callable[[], None]] = deque()
        self.waiting: deque[Waiting] = deque()
        self.running: dict[str, Running] = {}
        self.stopped = False
        self.largest_batch = 0  # samples; shown by /healthz, read by tests

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job. It must not raise."""
        with self.wake:
            self.jobs.append(job)
            self.wake.notify()

    def sample(self, waiting: Waiting) -> None:
        with self.wake:
            self.waiting.append(waiting)
            self.wake.notify()

    def stop(self) -> None:
        with self.wake:
            self.stopped = True
            self.wake.notify()

    def run(self) -> None:
        # Sharp distributions are full of probabilities below 1e-38, on which arithmetic is a
        # hundred times slower. The setting belongs to this thread.
        torch.set_flush_denormal(True)
        while self.wait():
            if self.jobs:
                self.jobs.popleft()()
            self.generate()

    def wait(self) -> bool:
        """Block until there is something to do; False once the worker was stopped."""
        with self.wake:
            self.wake.wait_for(lambda: self.stopped or self.jobs or self.waiting or self.running)
            if self.waiting and not self.jobs and not self.running:
                count = len(self.waiting)
                self.wake.wait_for(lambda: self.stopped or self.jobs, timeout=WINDOW)
                while len(self.waiting) > count and not self.jobs and count < ROWS:
                    count = len(self.waiting)
                    self.wake.wait_for(lambda: self.stopped or self.jobs, timeout=WINDOW)
            return not self.stopped

    def generate(self) -> None:
        """Sample until all is finished, or a job has waited for its share of time."""
        end = time.monotonic() + SLICE
        while not self.stopped:
            self.admit()
            if not self.running or (self.jobs and time.monotonic() > end):
                return
            for key in list(self.running):
                self.step(key)

    def admit(self) -> None:
        """Let waiting requests join the batch of their weights."""
        with self.wake:
            keys = {waiting.key for waiting in self.waiting}
        for key in keys:
            running = self.running.get(key)
            live, span = (running.generation.live, running.generation.span) if running else (0, 0)
            with self.wake:
                mine = [waiting for waiting in self.waiting if waiting.key == key]
                if running and running.steps % STEPS and 4 * len(mine) < live:
                    continue
                if live > ROWS // 2:
                    continue  # joining copies the cache: refill a large batch at once, not in drips
                chosen: list[Waiting] = []
                for waiting in mine:
                    live += waiting.request.num_samples
                    span += waiting.request.span(waiting.config)
                    # The first is always admitted: it would not become smaller by waiting.
                    alone = not (running or chosen)
                    if not alone and (live > ROWS or span * waiting.config.cache_cells > CELLS):
                        break
                    chosen.append(waiting)
                    self.waiting.remove(waiting)
            if chosen:
                self.begin(key, chosen)

    def begin(self, key: str, chosen: list[Waiting]) -> None:
        try:
            if key not in self.running:
                self.running[key] = Running(chosen[0].start())
            running = self.running[key]
            results = running.generation.admit([waiting.request for waiting in chosen])
        except Exception as error:
            for waiting in chosen:
                waiting.done(error)
            self.fail(key, error)
            return
        dones = [waiting.done for waiting in chosen]
        running.unfinished += zip(results, dones, strict=True)
        self.largest_batch = max(self.largest_batch, running.generation.live)
        self.deliver(key)

    def step(self, key: str) -> None:
        running = self.running[key]
        try:
            running.generation.step()
        except Exception as error:
            self.fail(key, error)
            return
        running.steps += 1
        self.deliver(key)

    def deliver(self, key: str) -> None:
        """Hand out complete results; a batch without live rows ends."""
        running = self.running[key]
        for result, done in running.unfinished:
            if not result.unfinished:
                done(result)
        running.unfinished = [pair for pair in running.unfinished if pair[0].unfinished]
        if not running.unfinished:
            del self.running[key]

    def fail(self, key: str, error: Exception) -> None:
        """Give up a whole batch: after an error its state is unknown."""
        logger.error("sampling failed", exc_info=error)
        running = self.running.pop(key, None)
        for _, done in running.unfinished if running else []:
            done(error)

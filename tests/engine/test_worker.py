"""The compute thread: what is batched, what waits, and that one failure is not everyone's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.engine import worker as worker_module
from posttrain.engine.model import Decoder
from posttrain.engine.sample import Request, Result
from posttrain.engine.sampler import Generation
from posttrain.engine.worker import Waiting, Worker
from tests.conftest import TINY

Answers = queue.Queue[Result | Exception]


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def decoder(tiny_model_dir: Path) -> Decoder:
    return Decoder.load(tiny_model_dir)


def ask(worker: Worker, decoder: Decoder, answers: Answers, key: str = "a", size: int = 1) -> None:
    request = Request((1, 2), num_samples=size, max_tokens=20)
    start = lambda: Generation(decoder, None)  # noqa: E731
    worker.sample(Waiting(key, TINY, start, request, answers.put))


def collect(answers: Answers, count: int) -> list[Result | Exception]:
    return [answers.get(timeout=30) for _ in range(count)]


def test_requests_that_wait_are_one_batch(worker: Worker, decoder: Decoder) -> None:
    answers: Answers = queue.Queue()
    for _ in range(20):
        ask(worker, decoder, answers)
    worker.start()
    assert all(isinstance(answer, Result) for answer in collect(answers, 20))
    assert worker.largest_batch == 20


@pytest.mark.parametrize("limit", ["ROWS", "CELLS"])
def test_batches_are_bounded_but_everything_is_answered(
    worker: Worker, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    bound = {"ROWS": 8, "CELLS": 8 * 22 * TINY.cache_cells}
    monkeypatch.setattr(worker_module, limit, bound[limit])
    answers: Answers = queue.Queue()
    for _ in range(5):
        ask(worker, decoder, answers, size=3)
    ask(worker, decoder, answers, size=50)  # larger than any batch: it goes alone
    worker.start()
    found = collect(answers, 6)
    assert sorted(len(f.samples) for f in found if isinstance(f, Result)) == [3] * 5 + [50]
    assert worker.largest_batch == 50


def test_jobs_run_in_order_and_between_samples(worker: Worker, decoder: Decoder) -> None:
    answers: Answers = queue.Queue()
    done: list[int] = []
    finished = threading.Event()
    for number in range(3):
        worker.submit(lambda number=number: done.append(number))  # type: ignore[misc]
        ask(worker, decoder, answers, key=str(number))
    worker.submit(finished.set)
    worker.start()
    assert finished.wait(30)
    assert done == [0, 1, 2]
    assert all(isinstance(answer, Result) for answer in collect(answers, 3))


def test_a_batch_that_fails_does_not_stop_the_others(worker: Worker, decoder: Decoder) -> None:
    answers: Answers = queue.Queue()

    def broken() -> Generation:
        raise MemoryError("too large")

    worker.sample(Waiting("bad", TINY, broken, Request((1,)), answers.put))
    worker.start()
    assert isinstance(collect(answers, 1)[0], MemoryError)
    ask(worker, decoder, answers)
    assert isinstance(collect(answers, 1)[0], Result)

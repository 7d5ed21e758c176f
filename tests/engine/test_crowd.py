"""Many clients at once, and clients that vanish: all others are served, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinker import types

from posttrain.engine.files import raise_file_limit
from tests.conftest import KEY
from tests.engine.impatient import end_early, forget_early
from tests.engine.nursery import Engine
from tests.engine.wire import MODEL, Client, until

CLIENTS = 20
SAMPLES = 256


@contextlib.contextmanager
def crowded(model: Path, state: Path, prepare: Callable[[], None]) -> Iterator[Engine]:
    """An engine of which in the end nothing is left: no session, client, sampler, snapshot,
    result or connection."""
    raise_file_limit()
    with Engine(model, state, KEY, prepare) as engine:
        with Client(engine.url) as client:
            client.train()
            client.result(client.sample(client.snapshot()))
            client.finish()
        idle = engine.files
        yield engine
        with Client(engine.url) as client:
            client.finish()

            def left() -> list[int]:
                health = client.health()
                kept = ("sessions", "training_clients", "samplers", "results")
                snapshots = list((engine.state / "scratch").glob("*/*"))
                return [*(health[name] for name in kept), len(snapshots)]

            until(lambda: left() == [0] * 5, name=lambda: f"left behind: {left()}")
        until(lambda: engine.files <= idle, name=lambda: f"{engine.files} files, {idle} before")


@pytest.fixture
def engine(tiny_model_dir: Path, tmp_path: Path) -> Iterator[Engine]:
    with crowded(tiny_model_dir, tmp_path, forget_early) as engine:
        yield engine


def test_256_samples_at_once(engine: Engine) -> None:
    """Each gets what it would have got alone, in a few batches."""
    service = tinker.ServiceClient(base_url=engine.url, api_key=KEY)
    sampler = service.create_sampling_client(base_model=MODEL).result()

    def ask(number: int) -> Any:
        prompt = types.ModelInput.from_ints([number % 8 + 1, 2, 3])
        params = types.SamplingParams(max_tokens=10, seed=number % 8, stop=[])
        return sampler.sample(prompt, 1, params)

    alone = [ask(number).result().sequences[0].tokens for number in range(8)]

    async def all_at_once() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*map(ask, range(SAMPLES))), 240)

    answers = asyncio.run(all_at_once())
    found = [answer.sequences[0].tokens for answer in answers]
    assert found == [alone[number % 8] for number in range(SAMPLES)]
    with Client(engine.url) as client:
        assert client.health()["largest_batch"] >= 32
        client.finish()
    service.close("success").result()


def work(url: str, number: int) -> tuple[bytes, bytes]:
    """A whole small run: what the trained weights compute, and what is sampled from them."""
    with Client(url, timeout=240) as client:
        client.train()
        for step in range(3):
            client.step(step)
        sampler = client.snapshot()
        sampled = client.result(client.sample(sampler))
        client.result(client.save("last"))
        bits, _ = client.bits()
        client.finish()
    return bits, sampled


def test_twenty_clients_at_once(engine: Engine) -> None:
    """All do the same, so all must get the same: nobody sees another's gradient or optimizer."""
    expected = work(engine.url, -1)
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda number: work(engine.url, number), range(CLIENTS)))
    assert found == [expected] * CLIENTS


def reset(connection: socket.socket) -> None:
    """Vanish as a process does that is killed with unread data: without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def vanish(url: str, head: str, body: bytes, sent: int, answered: bool) -> None:
    """Send a request up to byte `sent` of its body, wait for an answer or not, and be gone."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    lines = f"{head} HTTP/1.1\r\nhost: {host}:{port}\r\nx-api-key: {KEY}\r\n"
    lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(lines.encode() + body[:sent])
    if answered:
        connection.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            connection.recv(1)
    reset(connection)


@pytest.mark.parametrize("sent", [b"", b"POST /api/v1/asa"])
def test_a_connection_that_asks_nothing_is_closed(engine: Engine, sent: bytes) -> None:
    host, port = engine.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_clients_that_vanish(tiny_model_dir: Path, tmp_path: Path) -> None:
    """In the middle of a header, a body, a poll; with work under way, and without ending their
    sessions. Good clients beside them get the same numbers as alone."""
    with crowded(tiny_model_dir, tmp_path, end_early) as engine:
        crowd_that_vanishes(engine)


def crowd_that_vanishes(engine: Engine) -> None:
    expected = work(engine.url, -1)

    def abandon(number: int) -> None:
        with Client(engine.url, timeout=240) as client:
            client.train()
            sampler = client.snapshot()
            client.step(number)
            client.save("lost")
            waiting = client.sample(sampler, max_tokens=100, num_samples=8)
            poll = f'{{"request_id": "{waiting}"}}'.encode()
            vanish(engine.url, "POST /api/v1/retrieve_future", poll, len(poll), True)
            large = b'{"sampling_session_id": "' + b"x" * 500_000 + b'"}'
            vanish(engine.url, "POST /api/v1/asample", large, 100_000, False)
            vanish(engine.url, "POST /api/v1/asa", b"", 0, False)

    with ThreadPoolExecutor(CLIENTS + 2) as pool:
        gone = [pool.submit(abandon, number) for number in range(CLIENTS)]
        good = [pool.submit(work, engine.url, number) for number in range(2)]
        assert [each.result() for each in good] == [expected] * 2
        for each in gone:
            each.result()

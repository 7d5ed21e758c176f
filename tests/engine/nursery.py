"""Engine processes that start within milliseconds: forked from one that has all imported."""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

from posttrain.engine.server import serve

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "tests.engine.warm"])
START = 120.0  # seconds, of which the first engine's imports are most


class Child:
    """A process that runs a function, which may `send` to us."""

    def __init__(self, run: Callable[..., None], *arguments: Any) -> None:
        """`run` gets the other end of a pipe, then the arguments."""
        self.pipe, theirs = CONTEXT.Pipe()
        self.process: ForkServerProcess = CONTEXT.Process(target=run, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.pipe.close()
        self.process.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()

    def receive(self) -> Any:
        assert self.pipe.poll(START), "the child says nothing"
        return self.pipe.recv()


class Engine(Child):
    """A serving engine. `url` waits until it does."""

    def __init__(
        self,
        model: Path,
        state: Path,
        key: str,
        prepare: Callable[[], None] | None = None,
        name: str = "posttrain/tiny",
    ) -> None:
        """`prepare` is called in the process before the engine is made."""
        self.state = state
        super().__init__(serve_tiny, {name: model}, state, key, prepare)
        self.url: str = self.receive()

    def status(self, field: str) -> int:
        """Of /proc/<pid>/status, e.g. VmRSS, in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise KeyError(field)

    @property
    def files(self) -> int:
        """How many files and connections it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def serve_tiny(
    pipe: Connection,
    models: dict[str, Path],
    state: Path,
    key: str,
    prepare: Callable[[], None] | None,
) -> None:
    logging.disable(logging.ERROR)  # what a test provokes
    if prepare is not None:
        prepare()
    serve(
        models,
        "127.0.0.1",
        0,
        state,
        api_key=key,
        threads=1,
        ready=pipe.send,
    )

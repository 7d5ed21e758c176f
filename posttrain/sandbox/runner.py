"""Starting one program in a sandbox, watching it, and saying how it ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from enum import StrEnum

from posttrain.sandbox import inside
from posttrain.sandbox.backends import (
    BACKENDS,
    Backend,
    UnavailableError,
    available,
    command,
    unavailable,
)

CHUNK = 1 << 16


class Failure(StrEnum):
    """Why a program did not run to its end."""

    RAISED = "it raised an exception"
    EXITED = "it ended itself"
    CRASHED = "it crashed"
    MEMORY = "it ran out of memory"
    CPU = "it ran out of processor time"
    WALL = "it ran out of wall-clock time"
    OUTPUT = "it wrote too much"


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    memory: int = 256 << 20  # bytes of address space; Python itself takes some 30 MB of it
    cpu: int = 2  # seconds of processor time, whole ones
    wall: float = 10.0  # seconds, with the start of the sandbox
    output: int = 1 << 16  # bytes of standard output, and as many of standard error

    def __post_init__(self) -> None:
        if self.memory < 64 << 20 or self.cpu < 1 or self.wall <= 0 or self.output < 1:
            raise ValueError("a program needs 64 MB of memory, a second, and a byte of output")


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    ok: bool  # it ran to its end
    stdout: str  # undecodable bytes replaced; cut at the limit
    failure: Failure | None  # None if and only if ok
    detail: str  # last line of standard error, such as "ZeroDivisionError: division by zero"


def run(code: str, *, limits: Limits | None = None, backend: str | None = None) -> Result:
    """Run a Python program in a sandbox and wait for its end. Safe to call from many threads.

    Args:
        backend: `bubblewrap` or `namespaces`; by default the first that works here.

    Raises:
        ValueError: an unknown backend.
        UnavailableError: no backend isolates on this machine, or the sandbox could not be built.
    """
    reason = unavailable(backend) if backend else None
    if reason is not None:
        raise UnavailableError(
            f"{backend} does not isolate on this machine, nothing is run: {reason}"
        )
    return launch(BACKENDS[backend or available()], code, limits or Limits())


def launch(backend: Backend, code: str, limits: Limits) -> Result:
    """Run without asking whether the backend isolates: for `run` and the probe.

    Raises:
        UnavailableError: the sandbox could not be built.
    """
    arguments = command(backend, {"memory": limits.memory, "cpu": limits.cpu})
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            arguments, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise UnavailableError(f"the sandbox could not be started: {error}") from error
    writer = threading.Thread(target=_feed, args=(process, code), daemon=True)
    writer.start()
    try:
        stdout, stderr, stopped = _watch(process, limits)
    finally:
        _end(process)
        writer.join()
    started = stderr.startswith(inside.READY)
    said = stderr.removeprefix(inside.READY).decode(errors="replace").strip().splitlines()
    detail = said[-1][:300] if said else ""
    if not started and stopped is None:
        raise UnavailableError(f"the sandbox could not be built: {detail or 'no reason given'}")
    if process.returncode == inside.FINISHED and stopped is None:
        return Result(True, stdout.decode(errors="replace"), None, "")
    failure = stopped or _failure(process.returncode)
    return Result(False, stdout.decode(errors="replace"), failure, detail)


def _feed(process: subprocess.Popen[bytes], code: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(code.encode(errors="surrogatepass"))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read everything


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, bytes, Failure | None]:
    """Collect both outputs until they end, a limit is reached, or the time is over.

    A pipe ends when the last process that holds it is gone, so an end says that nothing is left.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    end = time.monotonic() + limits.wall
    collected = {process.stdout: bytearray(), process.stderr: bytearray()}
    stopped = None
    with selectors.DefaultSelector() as selector:
        for pipe in collected:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and stopped is None:
            left = end - time.monotonic()
            if left <= 0:
                stopped = Failure.WALL
            for key, _ in selector.select(max(left, 0)):
                chunk = os.read(key.fd, CHUNK)
                collected[key.fileobj] += chunk  # type: ignore[index]
                if not chunk:
                    selector.unregister(key.fileobj)
                elif len(collected[key.fileobj]) > limits.output:  # type: ignore[index]
                    stopped = Failure.OUTPUT
    out, err = (bytes(part[: limits.output]) for part in collected.values())
    return out, err, stopped


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the launcher, and with it everything inside; wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        # The processes inside have a session of their own, and die with their launcher.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _failure(code: int) -> Failure:
    """From an exit code, which a program can choose: what it claims, never more than that."""
    named = {
        inside.RAISED: Failure.RAISED,
        inside.MEMORY: Failure.MEMORY,
        128 + signal.SIGXCPU: Failure.CPU,
        128 + signal.SIGKILL: Failure.CPU,  # the hard limit, a second later
        128 + signal.SIGSEGV: Failure.CRASHED,
        128 + signal.SIGABRT: Failure.CRASHED,
        128 + signal.SIGSYS: Failure.CRASHED,
    }
    return named.get(code, Failure.EXITED)

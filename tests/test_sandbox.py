"""Hostile programs try to get out, and fail, under every backend that this machine has.

On a machine without any, what is tested is that nothing runs.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain import sandbox
from posttrain.sandbox import Failure, Limits, Result, backends, inside

NONE = "none"
HERE = [name for name in backends.BACKENDS if sandbox.unavailable(name) is None] or [NONE]
QUICK = Limits(cpu=1, wall=5)


def attempt(backend: str, code: str, limits: Limits = QUICK) -> Result | None:
    """How a program ended, or None where it was, rightly, refused."""
    if backend == NONE:
        with pytest.raises(sandbox.UnavailableError, match="nothing is run"):
            sandbox.run(code)
        return None
    return sandbox.run(code, limits=limits, backend=backend)


@pytest.mark.parametrize("backend", HERE)
def test_a_harmless_program_runs(backend: str) -> None:
    result = attempt(backend, "import heapq, math, re\nprint(math.comb(10, 3), 'é')")
    assert result in (None, Result(True, "120 é\n", None, ""))


ENDLESS = "while True: pass"
FORKS = "import os\nwhile True: os.fork()"
THREADS = "import threading\nwhile True: threading.Thread(target=lambda: input()).start()"
NATIVE_FORK = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = [libc.fork(), libc.vfork(), libc.syscall(57), libc.syscall(58)]
made += [libc.syscall(number, 0x11, 0, 0, 0, 0) for number in (56, 220, 435)]
assert 0 not in made, "forked"
raise SystemExit("no process was made: " + str(ctypes.get_errno()))
"""
SHARED_MEMORY = """
import ctypes, mmap
libc = ctypes.CDLL(None)
held = []
assert libc.shmget(0, 1 << 20, 0o1600) == -1
assert libc.memfd_create(b"x", 0) == -1
while True:
    held.append(mmap.mmap(-1, 1 << 24))
    held[-1].write(bytes(1 << 24))
"""
REALMEMORY = "held = []\nwhile True: held.append(bytearray(1 << 24))"


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    ("code", "failure", "detail"),
    [
        (ENDLESS, Failure.CPU, ""),
        (f"import signal\nsignal.signal(24, signal.SIG_IGN)  # XCPU\n{ENDLESS}", Failure.CPU, ""),
        (f"try:\n  exec({ENDLESS!r})\nfinally:\n  exec({ENDLESS!r})", Failure.CPU, ""),
        ("import time; time.sleep(60)", Failure.WALL, ""),
        (FORKS, Failure.RAISED, "PermissionError"),
        (NATIVE_FORK, Failure.EXITED, "no process was made: 1"),
        (THREADS, Failure.RAISED, "can't start new thread"),
        ("import subprocess; subprocess.run('true')", Failure.RAISED, "PermissionError"),
        ("import os; os.execv('/bin/sh', ['sh'])", Failure.RAISED, "Error"),
        (REALMEMORY, Failure.MEMORY, ""),
        ("x = 'x' * 10**12", Failure.MEMORY, ""),
        (SHARED_MEMORY, Failure.RAISED, "Cannot allocate memory"),
        ("while True: print('x' * 1000)", Failure.OUTPUT, ""),
        ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", Failure.OUTPUT, ""),
        ("import ctypes; ctypes.string_at(0)", Failure.CRASHED, ""),
        ("import os; os.abort()", Failure.CRASHED, ""),
        ("import sys; sys.exit(0)", Failure.EXITED, "SystemExit: 0"),
        ("import os; os._exit(0)", Failure.EXITED, ""),
        ("import os; os._exit(83)", Failure.EXITED, ""),
        ("assert 1 == 2, 'no'", Failure.RAISED, "AssertionError: no"),
        ("def f(:", Failure.RAISED, "SyntaxError"),
        ("\ud800", Failure.RAISED, "SyntaxError"),
        ("input()", Failure.RAISED, "EOFError"),
    ],
)
def test_what_a_program_may_not_use_up(
    backend: str, code: str, failure: Failure, detail: str
) -> None:
    began = time.monotonic()
    cpu = 1 if failure is Failure.CPU else 10  # to fill the memory can take a second too
    result = attempt(backend, code, Limits(cpu=cpu, wall=2 if "sleep" in code else 20))
    if result is None:
        return
    assert not result.ok
    assert result.failure is failure
    assert detail in result.detail
    assert len(result.stdout) <= QUICK.output
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd')",
        f"open({__file__!r})",
        f"import os; os.listdir({str(Path(__file__).parents[1])!r})",
        "import os; os.listdir('/proc/self')",
        "import os; os.listdir('/proc/1')",
        "import os; os.listdir('/tmp')",
        "import os; os.listdir('/dev/shm')",
        "open('/root/escaped', 'w')",
        "open('/escaped', 'w')",
        "import os; open(os.path.dirname(os.__file__) + '/escaped.py', 'w')",
        "import os; os.remove(os.__file__)",
        "import os; os.chmod(os.__file__, 0o777)",
        "import os; os.chroot('/')",
        "import os; os.setuid(0)",
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import numpy",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
def test_what_a_program_cannot_reach(backend: str, code: str) -> None:
    result = attempt(backend, code)
    if result is None:
        return
    assert result.failure is Failure.RAISED
    assert "Error" in result.detail


LOOK = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "unshare": libc.unshare(0x10000000), "setns": libc.setns(0, 0),
    "mount": libc.mount(b"none", b"/", b"tmpfs", 0, b""), "ptrace": libc.ptrace(16, 1, 0, 0),
    "io_uring": libc.syscall(425, 1, 0),
}
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
print(json.dumps({
    "allowed": [name for name, result in calls.items() if result != -1],
    "environment": sorted(set(os.environ) - {"PWD", "LC_CTYPE"}),
    "who": [os.getuid(), os.geteuid(), os.getgid(), os.getcwd()],
    "groups": sorted(set(os.getgroups()) - {65534}),
    "root": sorted(os.listdir("/")),
    "open": [fd for fd in range(64) if is_open(fd)],
    "packages": [n for p in ("/site-packages", "/test")
                 for n in os.listdir(os.path.dirname(os.__file__) + p)],
}))
"""


@pytest.mark.parametrize("backend", HERE)
def test_there_is_nothing_to_see(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    view = backends.python_view() if backend != NONE else backends.View((), ())
    standard = str(Path(os.__file__).parent)
    shown = [f"{standard}/{name}" in view.masks for name in ("site-packages", "test")]
    code = LOOK if all(shown) else LOOK.replace('("/site-packages", "/test")', "()")
    result = attempt(backend, code)
    if result is None:
        return
    assert json.loads(result.stdout) == {
        "allowed": [],
        "environment": [],
        "who": [65534, 65534, 65534, "/"],
        "groups": [],
        "root": sorted({target.split("/")[1] for _, target in view.binds}),
        "open": [1, 2],
        "packages": [],
    }


@pytest.mark.parametrize("backend", HERE)
def test_no_signal_reaches_this_machine(backend: str) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    code = f"""
import os, signal
reached = []
for pid in ({os.getpid()}, {victim.pid}, os.getppid() + 10**6):
    try:
        os.kill(pid, signal.SIGKILL)
        reached.append(pid)
    except OSError:
        pass
for call in (lambda: os.killpg(0, 0), lambda: os.kill(-1, signal.SIGKILL)):
    try:
        call()
    except OSError:
        pass
print(reached)
"""
    try:
        result = attempt(backend, code)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    # kill(-1) is everything in its own namespace; process 1 there is out of reach.
    assert result is None or result.stdout in ("[]\n", "")


@pytest.mark.parametrize("backend", HERE)
def test_a_loopback_server_is_not_reached(backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        result = attempt(backend, f"import socket; socket.create_connection(('127.0.0.1', {port}))")
        with pytest.raises(TimeoutError):
            server.accept()
    assert result is None or result.failure is Failure.RAISED


def sandboxed() -> set[str]:
    """Processes of this machine that run the sandbox's first program."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:  # it ended in between
            continue
        if b"RLIMIT_MSGQUEUE" in text:
            found.add(path.parent.name)
    return found


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("how", ["", "os.close(1); os.close(2); ", "signal.signal(15, 1); "])
def test_nothing_is_left_when_it_returns(backend: str, how: str) -> None:
    before = sandboxed()
    seen = set()
    watch = threading.Timer(0.6, lambda: seen.update(sandboxed() - before))
    watch.start()
    code = f"import os, signal, time\n{how}time.sleep(60)"
    result = attempt(backend, code, Limits(wall=1.2))
    watch.join()
    assert result is None or result.failure is Failure.WALL
    end = time.monotonic() + 5  # the kernel takes a moment to bury the dead
    while (left := sandboxed() & seen) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left
    assert seen or backend == NONE


@pytest.mark.parametrize("backend", HERE)
def test_many_at_once_do_not_meet(backend: str) -> None:
    def one(i: int) -> Result | None:
        return attempt(backend, f"import os\nprint({i} * {i}, len(os.listdir('/')) < 6)")

    if backend == NONE:
        return
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(16)))
    assert [r.stdout for r in results if r] == [f"{i * i} True\n" for i in range(16)]
    assert threading.active_count() < 20


def test_output_is_cut_at_the_limit() -> None:
    result = attempt(HERE[0], "print('x' * 5000)", Limits(output=1000))
    assert result is None or (result.stdout, result.failure) == ("x" * 1000, Failure.OUTPUT)


@pytest.mark.parametrize("limits", [{"memory": 1 << 20}, {"cpu": 0}, {"wall": 0.0}, {"output": 0}])
def test_senseless_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a program needs 64 MB of memory, a second"):
        Limits(**limits)


# What refuses: backends that do not isolate, found by the probe.


def with_etc(view: backends.View, inner: list[str]) -> list[str]:
    """Namespaces with a hole."""
    return backends.namespaces(replace(view, binds=(*view.binds, ("/etc", "/etc"))), inner)


@pytest.mark.parametrize(
    ("leaky", "why"),
    [
        (lambda view, inner: inner, ""),  # no isolation at all
        (with_etc, "a program in it reads /etc/passwd" if HERE != [NONE] else ""),
        (lambda view, inner: ["/no/such/program"], "No such file"),
        (lambda view, inner: ["/bin/sh", "-c", "echo denied >&2; exit 1"], "denied"),
    ],
)
def test_a_backend_that_does_not_isolate_is_refused(
    leaky: backends.Backend, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {"leaky": leaky})
    backends._unavailable.cache_clear()
    try:
        with pytest.raises(sandbox.UnavailableError, match=f"nothing is run .leaky: .*{why}"):
            sandbox.run("print(1)")
    finally:
        backends._unavailable.cache_clear()


def test_unknown_backends_are_named() -> None:
    with pytest.raises(ValueError, match="known: bubblewrap, namespaces"):
        sandbox.run("print(1)", backend="docker")


def test_without_the_right_to_mount_a_user_namespace_is_made_or_it_refuses() -> None:
    """As an ordinary user has it: also root without the capability that containers take away."""
    drop = [shutil.which("setpriv") or "setpriv", "--bounding-set=-sys_admin"]
    code = (
        "from posttrain import sandbox\n"
        "try: print(sandbox.run('import os; print(os.getuid(), os.listdir(\"/\"))').stdout)\n"
        "except sandbox.UnavailableError as error: print('refused', error)"
    )
    command = [*(drop if os.getuid() == 0 else []), sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
    assert said.startswith(("65534 [", "refused no safe sandbox on this machine"))


def test_the_filter_denies_every_listed_call_on_both_architectures() -> None:
    """Interpret the BPF program: an emulator of the few instructions that it uses."""
    import errno
    import struct

    for machine, (column, audit) in inside.ARCHITECTURES.items():
        text = inside.filter_program(machine)
        program = [struct.unpack_from("HBBI", text, 8 * i) for i in range(len(text) // 8)]

        def decide(number: int, arch: int, program: list[tuple[int, ...]] = program) -> int:
            loaded, line = 0, 0
            while True:
                code, yes, no, value = program[line]
                line += 1
                match code:
                    case 0x20:
                        loaded = {0: number, 4: arch}[value]
                    case 0x15:
                        line += yes if loaded == value else no
                    case 0x35:
                        line += yes if loaded >= value else no
                    case 0x06:
                        return int(value)

        denied = {entry[column] for entry in inside.DENIED.values()} - {None}
        for number in range(500):
            expected = 0x50000 | errno.EPERM if number in denied else 0x7FFF0000
            assert decide(number, audit) == expected, number
        assert decide(0, 0x40000003) == 0x80000000  # i386
        assert decide(0x40000000 + 57, audit) == 0x80000000  # x32
    with pytest.raises(OSError, match="known: x86_64, aarch64"):
        inside.filter_program("riscv64")


@pytest.mark.parametrize(
    ("header", "column"),
    [("x86_64-linux-gnu/asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)],
)
def test_numbers_of_denied_calls_are_those_of_the_kernel(header: str, column: int) -> None:
    """Against the kernel's own headers, where a compiler brought them; aarch64 has the generic."""
    numbers = [entry[column] for entry in inside.DENIED.values() if entry[column] is not None]
    assert len(set(numbers)) == len(numbers)
    path = Path("/usr/include") / header
    text = path.read_text() if path.is_file() else ""
    for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)\n", text):
        if name in inside.DENIED:
            assert inside.DENIED[name][column] == int(number), name


def test_limits_of_this_process_are_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    attempt(HERE[0], "pass")
    assert resource.getrlimit(resource.RLIMIT_AS) == before

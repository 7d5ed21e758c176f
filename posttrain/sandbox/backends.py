"""How this machine can isolate a program: found once, proved by a probe, or refused."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = os.path.realpath(sys.executable)
_lock = threading.Lock()


class UnavailableError(RuntimeError):
    """No safe sandbox can be had on this machine; the text says why."""


@dataclass(frozen=True)
class View:
    """What a program may read of this machine."""

    binds: tuple[tuple[str, str], ...]  # (source, target), each read-only
    masks: tuple[str, ...]  # directories inside them that are shown empty


@functools.cache
def python_view() -> View:
    """The interpreter, its standard library, and the shared libraries that these load.

    Installed packages lie inside the standard library's directory in many Pythons, so they are
    masked.

    Raises:
        UnavailableError: `ldd` is not there, or cannot read the interpreter.
    """
    standard = os.path.realpath(os.path.dirname(os.__file__))
    dynamic = os.path.realpath(sysconfig.get_config_var("DESTSHARED") or standard)
    library = {standard} if dynamic.startswith(standard + "/") else {standard, dynamic}
    # Without the window system, which no program here can use.
    extensions = [str(p) for p in Path(dynamic).glob("*.so") if not p.name.startswith("_tkinter")]
    ldd = shutil.which("ldd")
    if ldd is None:
        raise UnavailableError("ldd is not there, so the libraries of Python cannot be found")
    found = subprocess.run([ldd, PYTHON, *extensions], capture_output=True, text=True, check=False)
    shared = set(re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", found.stdout, re.MULTILINE))
    if not shared:
        raise UnavailableError(f"ldd finds no libraries of {PYTHON}: {found.stderr.strip()[:200]}")
    # A library inside the standard library's directory would be mounted there twice.
    files = sorted(f for f in shared if not any(f.startswith(folder + "/") for folder in library))
    binds = [(PYTHON, PYTHON)]
    binds += [(os.path.realpath(f), os.path.normpath(f)) for f in files]
    binds += [(folder, folder) for folder in sorted(library)]
    masks = [f"{folder}/{name}" for folder in library for name in ("site-packages", "test")]
    return View(tuple(binds), tuple(sorted(m for m in masks if os.path.isdir(m))))


def bubblewrap(view: View, inner: list[str]) -> list[str]:
    """The command that runs `inner` under bubblewrap.

    Raises:
        UnavailableError: `bwrap` is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UnavailableError("bwrap is not installed")
    command = [bwrap, "--die-with-parent", "--new-session", "--chdir", "/", "--cap-drop", "ALL"]
    command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    if os.getuid() == 0:  # keeps the right to become nobody, which `inside` does at once
        command += ["--unshare-cgroup-try", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-cgroup-try", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    parents = {parent for _, target in view.binds for parent in Path(target).parents}
    for parent in sorted(parents - {Path("/")}):  # else they are readable by root alone
        command += ["--perms", "0755", "--dir", str(parent)]
    for source, target in view.binds:
        command += ["--ro-bind", source, target]
    for target in view.masks:
        command += ["--tmpfs", target, "--remount-ro", target]
    return [*command, "--remount-ro", "/", *inner]


def namespaces(view: View, inner: list[str]) -> list[str]:
    """The command that runs `inner` in namespaces of our own making.

    Raises:
        UnavailableError: this is not Linux.
    """
    if sys.platform != "linux":
        raise UnavailableError(f"namespaces are a part of Linux, and this is {sys.platform}")
    spec = json.dumps({"binds": view.binds, "masks": view.masks, "command": inner})
    return [PYTHON, "-I", "-S", "-B", str(HERE / "namespaces.py"), spec]


Backend = Callable[[View, list[str]], list[str]]
BACKENDS: dict[str, Backend] = {"bubblewrap": bubblewrap, "namespaces": namespaces}


def command(backend: Backend, limits: Mapping[str, int]) -> list[str]:
    """What to execute for a program that is then given on standard input."""
    inside = (HERE / "inside.py").read_text()
    inner = [PYTHON, "-I", "-S", "-B", "-X", "utf8", "-c", inside, json.dumps(dict(limits))]
    return backend(python_view(), inner)


# Tries what must not succeed, and prints what did. `{canary}` is a file that exists outside.
PROBE = """
import ctypes, json, os, socket
holes = []
def attempt(name, action):
    try:
        action()
    except (OSError, RuntimeError):
        return
    holes.append(name)
attempt("reads a file of this machine", lambda: open({canary!r}))
attempt("reads /etc/passwd", lambda: open("/etc/passwd"))
attempt("writes a file", lambda: open("/probe", "w"))
attempt("writes into Python", lambda: open(os.path.dirname(os.__file__) + "/probe", "w"))
attempt("opens a socket", lambda: socket.create_connection(("127.0.0.1", {port}), 1))
attempt("makes a socket", lambda: socket.socket())
attempt("starts a process", lambda: os._exit(0) if os.fork() == 0 else None)
attempt("sees processes of this machine", lambda: os.kill({pid}, 0))
attempt("sees /proc or /sys", lambda: os.listdir("/proc/1") and os.listdir("/sys/kernel"))
attempt("takes rights back", lambda: os.setuid(0))
attempt("makes namespaces", lambda: (_ for _ in ()).throw(OSError())
        if ctypes.CDLL(None).unshare(0x10000000) else None)
prctl = ctypes.CDLL(None).prctl
if prctl(39, 0, 0, 0, 0) != 1: holes.append("may gain rights")
if prctl(21, 0, 0, 0, 0) != 2: holes.append("has no system call filter")
if os.getuid() == 0: holes.append("is root")
if set(os.environ) - {{"LC_CTYPE", "PWD"}}: holes.append("has an environment")
print(json.dumps(holes))
"""


def probe(backend: Backend) -> None:
    """Run a program that tries to get out.

    Raises:
        UnavailableError: the sandbox could not be built, or something in it was possible.
    """
    from posttrain.sandbox.runner import Limits, launch

    with tempfile.NamedTemporaryFile() as canary, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(canary.name, 0o644)
        port = server.getsockname()[1]
        code = PROBE.format(canary=canary.name, port=port, pid=os.getpid())
        result = launch(backend, code, Limits())
    if not result.ok:
        raise UnavailableError(f"{result.failure}, {result.detail}")
    holes = json.loads(result.stdout)
    if holes:
        raise UnavailableError(f"a program in it {', '.join(holes)}")


def unavailable(name: str) -> str | None:
    """Why a backend cannot be used here, or None if it can. Looked at once in a process."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    with _lock:
        return _unavailable(name)


@functools.cache
def _unavailable(name: str) -> str | None:
    try:
        probe(BACKENDS[name])
    except UnavailableError as error:
        return str(error)
    return None


def available() -> str:
    """The name of the backend that `run` uses: the first that isolates.

    Raises:
        UnavailableError: none does; the text says why for each.
    """
    reasons = {}
    for name in BACKENDS:
        reason = unavailable(name)
        if reason is None:
            return name
        reasons[name] = reason
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise UnavailableError(f"no safe sandbox on this machine, so nothing is run ({listed})")

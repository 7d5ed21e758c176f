"""Disks that are full, made by means that an ordinary process has."""

from __future__ import annotations

import ctypes
import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path

from tests.engine.nursery import Child

# Of <sched.h> and <sys/mount.h>.
NEW_MOUNTS, NEW_USER, RECURSIVE, PRIVATE = 0x20000, 0x10000000, 16384, 1 << 18


def mount(directory: Path, size: int) -> None:
    """A file system of `size` bytes, in memory, that only this process and its children see.

    Raises:
        OSError: the system does not allow it: in containers, mostly.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, f"{function}: {os.strerror(code)}")

    user, group = os.getuid(), os.getgid()
    if user == 0:
        call("unshare", NEW_MOUNTS)
    else:
        call("unshare", NEW_MOUNTS | NEW_USER)
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            Path("/proc/self", file).write_text(text)
    call("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)
    directory.mkdir(parents=True, exist_ok=True)
    call("mount", b"tmpfs", bytes(directory), b"tmpfs", 0, f"size={size}".encode())


def try_to_mount(pipe: Connection, directory: Path) -> None:
    try:
        mount(directory, 2**20)
    except OSError as error:
        pipe.send(str(error))
    else:
        pipe.send(None)


def may_mount(directory: Path) -> bool:
    with Child(try_to_mount, directory) as child:
        return child.receive() is None


def limit(size: int | None, pid: int = 0) -> None:
    """Let a process write no file beyond `size` bytes: further writes fail. None lifts it."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))

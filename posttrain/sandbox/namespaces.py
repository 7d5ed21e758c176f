"""A launcher that puts a command into Linux namespaces; used where bubblewrap is not there.

Run as a script of its own (`python -I -S namespaces.py SPEC`), because a process must have one
thread to make a user namespace. SPEC is JSON: `binds`, pairs of (source, target) that the command
may read; `masks`, directories among them shown empty; `command`. It does what bubblewrap does:

1. New namespaces of every kind: users, mounts, processes, network, System V IPC, host name, control
   groups. With real root rights no user namespace is needed; the command drops these rights first
   thing (`posttrain/sandbox/inside.py`). Without, a user namespace gives the right to mount.
2. A new root: an empty file system in memory with the binds, all read-only. The old root is gone.
3. A process 1 that only waits for the command. When it ends, the kernel kills what is left.

Every step must succeed; the exit code is then that of the command, or 128 and its signal. Errors
end it with `BROKEN` before the command starts. See namespaces(7), mount_setattr(2), pivot_root(2).
"""

import ctypes
import json
import os
import signal
import sys

BROKEN = 83
MOUNT_POINT = b"/proc"  # exists everywhere, and no Python lives below it
NOBODY = 65534
NEW_USER = 0x10000000
NEW_REST = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
NOSUID, NODEV, RDONLY, REMOUNT = 2, 4, 1, 32
BIND, RECURSIVE, PRIVATE, DETACH = 4096, 16384, 1 << 18, 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes) -> None:
    result = libc.mount(source, target, kind, ctypes.c_ulong(flags), data)
    check(result, f"mounting {target.decode()}")


def read_only(target: bytes) -> None:
    """Make a mount and all below it read-only, without set-user-id bits and devices."""
    attributes = (ctypes.c_uint64 * 4)(RDONLY | NOSUID | NODEV, 0, 0, 0)
    numbers = [ctypes.c_long(n) for n in (SYS_MOUNT_SETATTR, AT_FDCWD)]
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = libc.syscall(*numbers, target, AT_RECURSIVE, ctypes.byref(attributes), size)
    check(result, f"making {target.decode()} read-only")


def separate() -> None:
    """Leave the namespaces of this machine."""
    user, group = os.getuid(), os.getgid()
    if user == 0 and libc.unshare(NEW_REST) == 0:
        return
    check(libc.unshare(NEW_REST | NEW_USER), "making namespaces")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter(binds: list[list[str]], masks: list[str]) -> None:
    """Build the new root and make it the only one."""
    machine = os.uname().machine
    if machine not in SYS_PIVOT_ROOT:
        raise OSError(f"pivot_root is not known for {machine}")
    mount(None, b"/", None, PRIVATE | RECURSIVE, b"")  # what happens here stays here
    root = MOUNT_POINT
    mount(b"sandbox", root, b"tmpfs", NOSUID | NODEV, b"mode=755,size=1m")
    for source, target in binds:
        path = root.decode() + target
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o444))
        mount(source.encode(), path.encode(), None, BIND | RECURSIVE, b"")
        read_only(path.encode())
    for target in masks:
        mount(b"empty", root + target.encode(), b"tmpfs", NOSUID | NODEV, b"mode=555,size=4k")
        read_only(root + target.encode())
    read_only(root)
    os.chdir(root)
    check(libc.syscall(ctypes.c_long(SYS_PIVOT_ROOT[machine]), b".", b"."), "pivot_root")
    check(libc.umount2(b".", DETACH), "leaving the old root")
    os.chdir("/")


def wait(pid: int) -> int:
    """The exit code of a child, or 128 and its signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def with_parent() -> None:
    """Die with the process that started this one, whatever ends it."""
    check(libc.prctl(SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)), "prctl")


def main() -> int:
    spec = json.loads(sys.argv[1])
    parent = os.getppid()
    try:
        separate()
        enter(spec["binds"], spec["masks"])
        with_parent()  # after separate(): a change of rights clears it
        if os.getppid() != parent:
            return BROKEN
        first = os.fork()  # process 1 of the new namespace
        if first == 0:
            with_parent()
            second = os.fork()
            if second == 0:
                os.setsid()  # out of the launcher's process group, which it could signal
                os.execve(spec["command"][0], spec["command"], {})
            os._exit(wait(second))
        return wait(first)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return BROKEN


if __name__ == "__main__":
    os._exit(main())

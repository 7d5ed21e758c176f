"""The first program in a sandbox: gives up every privilege, then runs the code from standard input.

It never runs in this process. Its text is handed to a bare interpreter (`python -I -S -c`) that
already sits in its namespaces, with the limits as one JSON argument. It uses only the standard
library, because nothing else is there.

When the sandbox is closed it says `READY` on standard error; what comes before is not the
program's doing. Exit codes: `FINISHED` the code ran to its end, `RAISED` an exception, `MEMORY` it
ran out of memory, `BROKEN` the sandbox could not be closed, so that nothing was run. Any other: the
program ended itself.
"""

import ctypes
import errno
import io
import json
import os
import platform
import resource
import struct
import sys
import traceback

FINISHED, RAISED, MEMORY, BROKEN = 80, 81, 82, 83
READY = b"\x06ready\n"
NOBODY = 65534
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2  # prctl(2)

# What a program has no need for, by system call number on x86_64 and on aarch64. No processes, no
# sockets, no memory outside the address-space limit, no way to make namespaces or to look into
# other processes, and none of the interfaces through which kernels are usually broken.
DENIED = {
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "clone3": (435, 435),
    "ptrace": (101, 117),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "personality": (135, 92),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, audit number


def filter_program(machine: str) -> bytes:
    """The seccomp filter as classic BPF (seccomp(2)): denied calls fail with EPERM.

    A call through another architecture's table (32-bit, x32) kills the process, since its numbers
    mean other things.

    Raises:
        OSError: this architecture's numbers are not known.
    """
    if machine not in ARCHITECTURES:
        raise OSError(f"no system call table for {machine}; known: {', '.join(ARCHITECTURES)}")
    column, audit = ARCHITECTURES[machine]
    numbers = [n for n in (entry[column] for entry in DENIED.values()) if n is not None]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # BPF_LD|ABS, JEQ, JGE, RET
    kill, deny, allow = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    lines = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill)]
    lines += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]
    for i, number in enumerate(numbers):
        lines.append((equal, len(numbers) - i, 0, number))  # jumps over the rest, to deny
    lines += [(give, 0, 0, allow), (give, 0, 0, deny)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def close(limits: dict[str, int]) -> None:
    """Give up privileges for good: user, rights, resources, system calls.

    Raises:
        OSError: one of them could not be given up.
    """
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)  # and with it every capability
    for name, value in {
        "RLIMIT_AS": limits["memory"],
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_SIGPENDING": 64,
    }.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 1))
    libc = ctypes.CDLL(None, use_errno=True)
    program = filter_program(platform.machine())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    null = ctypes.c_ulong(0)
    for option, value, pointer in ((NO_NEW_PRIVS, 1, None), (SET_SECCOMP, FILTER, header)):
        if libc.prctl(option, ctypes.c_ulong(value), pointer, null, null):
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def main() -> None:
    code = sys.stdin.buffer.read()
    try:
        close(json.loads(sys.argv[1]))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(BROKEN)
    os.write(2, READY)
    os.close(0)
    sys.stdin = io.StringIO()
    sys.argv = [""]
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    status = FINISHED
    try:
        exec(compile(code, "<program>", "exec"), namespace)
    except MemoryError:
        namespace.clear()
        status = MEMORY
    except SystemExit as error:
        print(f"SystemExit: {error.code}", file=sys.stderr)
        status = 0
    except BaseException:
        traceback.print_exc(limit=-3)
        status = RAISED
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)  # without waiting for anything that the program left behind


if __name__ == "__main__":
    main()

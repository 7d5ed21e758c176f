"""Running hostile Python: programs that a model wrote.

    result = run("print(6 * 7)")
    result.ok, result.stdout        # True, "42\n"

A program runs in a process of its own, which sees a read-only Python (the standard library and the
shared libraries it is linked with) and nothing else of this machine: no other file, nothing
writable, no network, no environment, no other process. It cannot start processes or threads.
Memory, processor time, wall-clock time and output are limited. When `run` returns, nothing of the
program is left.

Isolation is by Linux namespaces, set up by bubblewrap (`bwrap`) where it works, else by
`posttrain/sandbox/namespaces.py`, and by a seccomp filter and resource limits on top. Where it
cannot be had, or a probe on first use finds that it does not hold, `run` refuses: there is no
unsafe mode.

`Result.ok` is what the program's own process reports. A program that sets out to can claim that
it ended well, or print what it likes. So a grader lets the program compute values and compares
them here, outside, as `posttrain/tasks/mbpp.py` does.
"""

from posttrain.sandbox.backends import UnavailableError, available, unavailable
from posttrain.sandbox.runner import Failure, Limits, Result, run

__all__ = ["Failure", "Limits", "Result", "UnavailableError", "available", "run", "unavailable"]

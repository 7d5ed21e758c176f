"""The process's heap."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# The parameters of glibc's mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
MIB = 2**20


def c_library(name: str) -> Any:
    """A function that only glibc has, or None."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def give_back_pages() -> None:
    """Return memory that is free to the system, where the C library is glibc."""
    trim = c_library("malloc_trim")
    if trim is not None:
        trim(0)


def keep_pages() -> bool:
    """Let freed memory stay with the process, so that large tensors reuse it.

    By default every tensor of some hundred kilobytes goes back to the system when it is freed,
    and the next one of its size costs a page fault every four kilobytes: up to a quarter of the
    time of a product. False where the C library is not glibc; nothing is changed then.
    """
    mallopt = c_library("mallopt")
    if mallopt is None:
        return False
    wanted = {ARENA_MAX: 1, TRIM_THRESHOLD: 1024 * MIB, TOP_PAD: 64 * MIB, MMAP_THRESHOLD: 32 * MIB}
    accepted = [mallopt(key, value) for key, value in wanted.items()]
    return all(accepted)

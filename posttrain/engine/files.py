"""The process's limit on open files."""

from __future__ import annotations

import resource

ENOUGH = 8192  # a sample in flight holds two connections at both ends, and groups are large


def raise_file_limit() -> None:
    """Allow up to ENOUGH open files, as far as the system lets this user."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

"""Many seeds at once: one process each, which share the cores and the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def run_seeds(words: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Run `posttrain WORDS --seed S` for every seed, `jobs` at a time, and show what they print.

    Seeds are independent, so two processes with one thread each finish sooner than one with two.

    Raises:
        RuntimeError: a seed failed; the others have finished, and the same command resumes.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}

    def run(seed: int) -> int:
        command = [sys.executable, "-m", "posttrain", *words, "--seed", str(seed)]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, text=True, env=env, **pipe) as child:  # type: ignore[call-overload]
            for line in child.stdout:
                print(f"seed {seed} | {line}", end="", flush=True)
        return int(child.returncode)

    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(run, seeds))
    failed = [seed for seed, code in zip(seeds, codes, strict=True) if code]
    if failed:
        raise RuntimeError(f"seeds {failed} failed; see above, then give the same command again")

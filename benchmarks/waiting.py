"""How long the engine's threads should wait for each other awake, before they sleep.

    python -m benchmarks.waiting                10 minutes on a quiet machine

Training (W1) and sampling (W2) with model `tiny` in float32 on two threads, and on one; alone, and
with another process that does the same on the same two cores. `GOMP_SPINCOUNT` says how often a
thread looks whether there is work before it sleeps. The settings take turns. The result is
benchmarks/waiting.json: medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.work import write_model
from posttrain.runs import git_commit, git_dirty, write_json

RESULT = Path(__file__).with_suffix(".json")
COUNTS = (0, 3_000, 30_000)  # looks; the engine has 3,000
TURNS = 3
COMPANY = {"alone": 1, "two at once": 2}  # processes
SETTINGS = {"one thread": (1, 0), **{f"two threads, {n} looks": (2, n) for n in COUNTS}}


def cells(work: str, model: Path, threads: int, looks: int, processes: int) -> list[float]:
    """Seconds of `work` as each of `processes` measures it, side by side on the last two cores."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TINKER_")}
    env |= {"GOMP_SPINCOUNT": str(looks), "OMP_NUM_THREADS": str(threads)}
    outs = [model.with_name(f"{i}.json") for i in range(processes)]
    command = [sys.executable, "-m", "benchmarks.cell", work, "tiny", "posttrain", "float32", "2"]
    running = [
        subprocess.Popen([*command, "--model", str(model), "--out", str(out)], env=env)
        for out in outs
    ]
    statuses = [process.wait() for process in running]
    if any(statuses):
        sys.exit(f"{work} failed; its error is above")
    return [statistics.median(json.loads(out.read_text())["seconds"]) for out in outs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    code = {"commit": git_commit(), "dirty": git_dirty()}
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        write_model(model, "tiny")
        for turn in range(args.turns):
            for work in ("W1", "W2"):
                for name, (threads, looks) in SETTINGS.items():
                    for company, processes in COMPANY.items():
                        found = cells(work, model, threads, looks, processes)
                        seconds[work, name, company] += found
                        print(turn, work, name, company, found, flush=True)
    write_json(
        args.out,
        {
            "command": "python -m benchmarks.waiting",
            "turns": args.turns,
            **code,
            "machine": f"{platform.platform()}, {os.cpu_count()} cores",
            "torch": version("torch"),
            "seconds": {
                work: {
                    name: {
                        company: round(statistics.median(seconds[work, name, company]), 3)
                        for company in COMPANY
                    }
                    for name in SETTINGS
                }
                for work in ("W1", "W2")
            },
        },
    )


if __name__ == "__main__":
    main()

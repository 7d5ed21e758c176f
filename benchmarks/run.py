"""Measure the engine and its peers side by side, and write docs/benchmarks.md: `make bench`.

    python -m benchmarks.run                 everything; continues where it was interrupted
    python -m benchmarks.run --minutes 15    at most; the same command continues
    python -m benchmarks.run --quick         every kind of cell once, on little work, in build/
    python -m benchmarks.run --page          only write the page, from benchmarks/results.json
    python -m benchmarks.run --check         refuse a page that is not written from it

Every cell is a process of its own, and those to be compared take turns, so that what else the
machine does meets all. What is finished is kept in benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cell import ENGINES
from benchmarks.page import render
from benchmarks.work import LONG, WORKS
from posttrain.runs import git_commit, git_dirty, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "benchmarks.md"
SCRATCH = ROOT / "build" / "bench"  # models, logs, and what --quick writes
TIMEOUT = 900.0  # seconds of a cell
PACKAGES = ("torch", "transformers", "peft", "trl", "tinker", "numpy")
MEASURING = ("work", "cell", "sdk", "plain", "trl_peer", "engine", "growth")


@dataclass(frozen=True)
class Cell:
    work: str
    shape: str
    engine: str
    dtype: str
    threads: int

    @property
    def key(self) -> str:
        return f"{self.work} {self.shape} {self.engine} {self.dtype} {self.threads}"


def plan(quick: bool, amx: bool) -> list[Cell]:
    """The cells in the order in which they run, once for each round of each.

    One thread: two rounds, A B C A B C. Then what is measured of the engine alone, and at last one
    round on two threads. `quick`: the tiny model on one thread.
    """
    best = "bfloat16" if amx else "float32"
    shapes = ("tiny",) if quick else ("tiny", "small")

    def turns(dtypes: Sequence[str], threads: int, rounds: int) -> Iterator[Cell]:
        for work, shape, dtype in product(WORKS[:3], shapes, dtypes):
            turn = [Cell(work, shape, e, dtype, threads) for e in ENGINES if work in ENGINES[e]]
            yield from turn * rounds

    cells = [*turns(("bfloat16", "float32"), 1, 1 if quick else 2)]
    cells += [Cell("W4", "tiny", engine, "float32", 1) for engine in ENGINES] * (1 if quick else 3)
    cells += [Cell("calls", "tiny", "posttrain", best, 1)]
    for shape, dtype in product(shapes, ("bfloat16", "float32")):
        cells += [Cell("engine", shape, "posttrain", dtype, 1)]
    cells += [Cell("growth", "tiny", "posttrain", best, 1)]
    if not quick:
        cells += [*turns(("bfloat16",), 2, 1), *turns(("float32",), 2, 1)]
    return cells


def missing(cells: list[Cell], found: dict[str, list[Any]]) -> list[Cell]:
    """What of the plan is still to be measured.

    A piece of work that takes longer than LONG seconds is not measured in a second round.
    """
    done = {key: len(rounds) for key, rounds in found.items()}
    left = []
    for cell in cells:
        if done.get(cell.key, 0) > 0:
            done[cell.key] -= 1
            continue
        if not too_long(cell, found):
            left.append(cell)
    return left


def too_long(cell: Cell, found: dict[str, list[Any]]) -> bool:
    first = found.get(cell.key, [])[:1]
    return cell.work in WORKS[:3] and any(min(one["seconds"]) > LONG for one in first)


def about() -> dict[str, Any]:
    """What results depend on, so that those of other code or machines are not mixed."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "code": code(),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text().splitlines()
    found = dict.fromkeys(line.split(":")[1].strip() for line in lines if "model name" in line)
    units = ", with bf16 matrix units (AMX)" if has_amx() else ""
    return ", ".join(found) + units


def has_amx() -> bool:
    from posttrain.engine.precision import has_amx

    return has_amx()


def code() -> str:
    """16 hex digits of the files that decide what is measured."""
    files = sorted((ROOT / "posttrain" / "engine").rglob("*.py"))
    files += [ROOT / "posttrain" / name for name in ("connect.py", "datums.py")]
    files += [ROOT / "benchmarks" / f"{name}.py" for name in MEASURING]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def open_results(path: Path, fresh: bool) -> dict[str, Any]:
    """Those that were begun, or empty ones. Raises SystemExit where they cannot be continued."""
    now = about()
    if path.exists() and not fresh:
        results: dict[str, Any] = json.loads(path.read_text())
        changed = [name for name, value in now.items() if results["about"][name] != value]
        if changed:
            sys.exit(
                f"{path} was measured with another {changed[0]}; --fresh measures everything anew"
            )
        return results
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    return {"about": now, "commit": git_commit(), "dirty": git_dirty(), "begun": stamp, "cells": {}}


def measure(cell: Cell, quick: bool) -> Any:
    """Run a cell in a process of its own. Raises SystemExit with the end of its output."""
    out, log = SCRATCH / "cell.json", SCRATCH / "cell.log"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.cell", cell.work, cell.shape, cell.engine]
    command += [cell.dtype, str(cell.threads), "--model", str(SCRATCH / cell.shape)]
    command += ["--out", str(out), *(["--quick", "--budget", "0"] if quick else [])]
    if cell.work in ("engine", "growth"):
        command += ["--budget", "0" if quick else "1"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("TINKER_")}
    env |= {"OMP_NUM_THREADS": str(cell.threads), "HF_HUB_OFFLINE": "1", "TINKER_TELEMETRY": "0"}
    with log.open("w") as output:
        try:
            status = subprocess.run(
                [*command, "--begun", repr(time.time())],
                cwd=ROOT,
                env=env,
                stdout=output,
                stderr=output,
                timeout=TIMEOUT,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    if status or not out.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(
            f"{cell.key} failed with status {status}; everything before it is kept, and the same "
            f"command continues. The end of its output:\n{tail}"
        )
    return json.loads(out.read_text())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(arguments)
    if args.check:
        return check(RESULTS, PAGE)
    results_file = SCRATCH / "quick.json" if args.quick else RESULTS
    page = SCRATCH / "quick.md" if args.quick else PAGE
    if not args.page:
        SCRATCH.mkdir(parents=True, exist_ok=True)
        results = open_results(results_file, args.fresh)
        if not all((SCRATCH / shape / "config.json").exists() for shape in ("tiny", "small")):
            command = [sys.executable, "-m", "benchmarks.work", str(SCRATCH)]
            subprocess.run(command, cwd=ROOT, check=True)
        cells, begin = plan(args.quick, has_amx()), time.monotonic()
        while left := missing(cells, results["cells"]):
            if time.monotonic() - begin > 60 * args.minutes:
                print(f"{len(left)} cells are left; the same command continues")
                break
            before = time.monotonic()
            found = measure(left[0], args.quick)
            results["cells"].setdefault(left[0].key, []).append(found)
            write_json(results_file, results)
            print(
                f"{len(cells) - len(left) + 1}/{len(cells)} {left[0].key}: "
                f"{time.monotonic() - before:.0f} s",
                flush=True,
            )
    write_text(page, written_from(results_file))
    print(f"wrote {page}")
    return 0


def written_from(results: Path) -> str:
    """The page of these results, and of the parts that are beside them."""
    parts = results.with_name("parts.json")
    made_of = json.loads(parts.read_text()) if parts.exists() else None
    return render(json.loads(results.read_text()), made_of)


def check(results: Path, page: Path) -> int:
    """0 where the page is written from the results, or where there is neither."""
    if results.exists() != page.exists():
        print(f"of {results.name} and {page.name} one is missing; `make bench` writes both")
        return 1
    if page.exists() and page.read_text() != written_from(results):
        print(f"{page.name} is not written from {results.name}: python -m benchmarks.run --page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

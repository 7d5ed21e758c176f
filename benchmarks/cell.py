"""One measurement, in a process of its own: `python -m benchmarks.cell --help`.

Writes a JSON object. For W1 to W4: `seconds`, a list with an entry for each repetition that counts
(W4: one, from `--begun` to the end of the first SFT step), and `peak`, the largest resident memory
in bytes that the process and the engine it may have started have had, added up; null where the
system does not say. For engine, growth and calls: what the functions of those names return
(`benchmarks.engine.report`, `benchmarks.growth`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.work import FULL, QUICK, SHAPES, WORKS, Driver, Sizes, counted, enough

ENGINES = {"posttrain": WORKS, "transformers": WORKS, "trl": ("W1", "W3", "W4")}
DETAILS = ("engine", "growth", "calls")
CALLS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=[*WORKS, *DETAILS])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("threads", type=int)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of repetitions")
    parser.add_argument("--begun", type=float, help="time.time() at the start of this process")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    keep_to(args.threads)
    sizes = QUICK if args.quick else FULL
    if args.work in DETAILS:
        args.out.write_text(json.dumps(details(args, sizes)))
        return
    driver: Any = make(args.engine, args.model, args.shape, args.dtype)
    if args.work == "W4":
        driver.first_step(sizes) if args.engine == "trl" else driver.w1(sizes)
        times = [time.time() - args.begun]
    elif args.engine == "trl":
        times = driver.measure(args.work, sizes, args.budget)
    else:
        times = repeated(driver, args.work, sizes, args.budget)
    peaks = [peak_memory(os.getpid())]
    if args.engine == "posttrain":
        peaks.append(peak_memory(driver.process))
    known = [peak for peak in peaks if peak is not None]
    peak = sum(known) if len(known) == len(peaks) else None
    args.out.write_text(json.dumps({"seconds": counted(times), "peak": peak}))


def details(args: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    from benchmarks import engine, growth

    if args.work == "engine":
        return engine.report(args.model, args.shape, args.dtype, sizes, args.budget)
    if args.work == "growth":
        return growth.growth(args.model, args.shape, args.dtype, args.budget, args.quick)
    return growth.calls(args.model, args.shape, args.dtype, 10 if args.quick else CALLS)


def keep_to(threads: int) -> None:
    """As many cores as threads, for this process and those it starts.

    Otherwise client and engine would compute side by side on one thread each.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def make(engine: str, model: Path, shape: str, dtype: str) -> Any:
    """The driver; only what it needs is imported, because W4 counts that."""
    if engine == "posttrain":
        from benchmarks.sdk import Sdk

        return Sdk(model, shape, dtype)
    if engine == "transformers":
        from benchmarks.plain import Plain

        return Plain(model, shape, dtype)
    from benchmarks.trl_peer import Trl

    return Trl(model, shape, dtype)


def repeated(driver: Driver, work: str, sizes: Sizes, budget: float) -> list[float]:
    """Seconds of each repetition, see `enough`."""
    run = getattr(driver, work.lower())
    times: list[float] = []
    while not enough(times, budget):
        begin = time.perf_counter()
        run(sizes)
        times.append(time.perf_counter() - begin)
    return times


def peak_memory(process: int) -> int | None:
    """Bytes; None on systems without /proc."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return None
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()

"""What the measurements of `benchmarks.run` say: medians, ratios, goals. No text, no files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "posttrain"
PEERS = ("transformers", "trl")
DTYPES = ("bfloat16", "float32")
Cells = Mapping[str, Sequence[Any]]  # "W1 tiny trl float32 1" -> what each round found


@dataclass(frozen=True)
class Best:
    """The fastest of some peers."""

    engine: str
    dtype: str
    seconds: float


@dataclass(frozen=True)
class Goal:
    """`asked` is met where `reached` is at least (ratios) or at most (`upper`) that."""

    name: str
    asked: float
    reached: float | None  # None: not measured
    unit: str
    upper: bool = False
    work: str = ""
    shape: str = ""
    dtype: str = ""

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached <= self.asked if self.upper else self.reached >= self.asked


def seconds(cells: Cells, key: str) -> list[float]:
    """All repetitions of all rounds; empty where the cell was not measured."""
    return [value for found in cells.get(key, ()) for value in found["seconds"]]


def median(cells: Cells, key: str) -> float | None:
    found = seconds(cells, key)
    return statistics.median(found) if found else None


def best_peer(
    cells: Cells, work: str, shape: str, dtypes: Sequence[str], threads: int
) -> Best | None:
    """The peer with the smallest median, whichever of `dtypes` it computes in."""
    found = [
        Best(engine, dtype, value)
        for engine in PEERS
        for dtype in dtypes
        if (value := median(cells, f"{work} {shape} {engine} {dtype} {threads}")) is not None
    ]
    return min(found, key=lambda best: best.seconds, default=None)


def ratio(
    cells: Cells, work: str, shape: str, dtype: str, peers: Sequence[str], threads: int = 1
) -> float | None:
    """How many times as fast as the best peer in one of the types `peers`; medians of each."""
    ours = median(cells, f"{work} {shape} {OURS} {dtype} {threads}")
    best = best_peer(cells, work, shape, peers, threads)
    return None if ours is None or best is None else best.seconds / ours


def peak_memory(cells: Cells, key: str) -> int | None:
    """Bytes, the largest of all rounds."""
    found = [round_["peak"] for round_ in cells.get(key, ()) if round_["peak"] is not None]
    return max(found, default=None)


def call_overheads(cells: Cells) -> dict[str, float]:
    """Seconds that a call through the SDK takes longer than its work: medians of both."""
    found: dict[str, float] = {}
    for key, rounds in cells.items():
        if key.startswith("calls "):
            for name, (through, without) in rounds[-1].items():
                found[name] = statistics.median(through) - statistics.median(without)
    return found


def goals(cells: Cells) -> list[Goal]:
    """Everything asked of the engine, and what was reached."""
    found = []
    for dtype, peers, asked in (
        ("bfloat16", DTYPES, {"W1": 3.0, "W2": 5.0, "W3": 6.0}),
        ("float32", ("float32",), {"W1": 1.5, "W2": 3.0, "W3": 3.5}),
    ):
        for work, factor in asked.items():
            for shape in ("tiny", "small"):
                reached = ratio(cells, work, shape, dtype, peers)
                name = f"{work} {shape}, {dtype}"
                found.append(Goal(name, factor, reached, "x", False, work, shape, dtype))
    reached = ratio(cells, "W4", "tiny", "float32", ("float32",))
    found.append(Goal("W4 tiny", 1.0, reached, "x", False, "W4", "tiny", "float32"))
    overheads = call_overheads(cells)
    for name in overheads or ["a call"]:
        value = overheads.get(name)
        milliseconds = None if value is None else 1e3 * value
        found.append(Goal(f"SDK overhead, {name}", 5.0, milliseconds, "ms", True))
    for shape in ("tiny", "small"):
        for dtype in DTYPES:
            mine = peak_memory(cells, f"W3 {shape} {OURS} {dtype} 1")
            theirs = [
                peak
                for peer in PEERS
                for other in DTYPES
                if (peak := peak_memory(cells, f"W3 {shape} {peer} {other} 1")) is not None
            ]
            share = mine / min(theirs) if mine is not None and theirs else None
            found.append(Goal(f"memory of W3 {shape}, {dtype}", 1.0, share, "x", True))
    return found

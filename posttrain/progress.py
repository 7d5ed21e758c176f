"""How far a run is: a live bar in a terminal, one updated line in a notebook, lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[int, Mapping[str, float]], None]  # (steps done, metrics of the last one)

LINES_EVERY = 10  # steps between two lines in a pipe
REFRESH = 0.3  # seconds between two updates in a notebook
HIDDEN = ("step", "seconds")  # the bar says these already


@contextmanager
def progress(label: str, start: int, total: int, keys: Sequence[str] = ()) -> Iterator[Show]:
    """Yields `show(step, metrics)`, to be called after each step; picks the right face itself.

    `keys` are the metrics to show, the first five when empty. Steps count from 1; `start` were
    done before.
    """
    console = Console()
    if console.is_jupyter:
        yield _notebook(label, total, keys)
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(label, total=total, completed=start, line="")
            yield lambda step, metrics: bar.update(
                task, completed=step, line=metrics_line(metrics, keys)
            )
    else:
        yield _lines(label, start, total, keys)


def metrics_line(metrics: Mapping[str, float], keys: Sequence[str] = ()) -> str:
    """`loss 0.4123  accuracy 0.5`: the metrics called `keys`, the first five when empty.

    A step may lack one, as a rate over nothing, which is shown as `-`. Raises KeyError naming the
    known metrics when none of `keys` is there.
    """
    shown = list(keys) or [key for key in metrics if key not in HIDDEN][:5]
    if shown and not any(key in metrics for key in shown):
        raise KeyError(f"no metric {shown[0]!r} to show; known: {', '.join(metrics)}")
    return "  ".join(f"{key} {_number(metrics.get(key))}" for key in shown)


def _number(value: float | None) -> str:
    """Counts in full, everything else with four digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[line]}", markup=False),
    )
    return Progress(*columns, console=console)


def _lines(label: str, start: int, total: int, keys: Sequence[str]) -> Show:
    began = time.perf_counter()

    def show(step: int, metrics: Mapping[str, float]) -> None:
        if step % LINES_EVERY == 0 or step in (start + 1, total):
            pace = (time.perf_counter() - began) / (step - start)
            line = f"{label} {step}/{total}  {metrics_line(metrics, keys)}  {pace:.2f} s/step"
            print(line, flush=True)

    return show


def _notebook(label: str, total: int, keys: Sequence[str]) -> Show:
    """One output that is replaced, so that a saved notebook holds the last state as plain text."""
    from IPython.display import DisplayHandle

    handle, shown, drawn = DisplayHandle(), False, 0.0

    def show(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal shown, drawn
        now = time.perf_counter()
        if shown and step < total and now - drawn < REFRESH:
            return
        full = round(24 * step / total)
        text = f"{label} {'━' * full}{'─' * (24 - full)} {step}/{total}  "
        content = _PlainText(text + metrics_line(metrics, keys))
        handle.update(content) if shown else handle.display(content)
        shown, drawn = True, now

    return show


class _PlainText:
    """Displays as the text itself, without the quotes of a string's repr."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text)

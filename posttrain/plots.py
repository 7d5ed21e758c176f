"""Figures of the lab: curves over seeds, before and after, estimates, what a distance from the
start gained, and the mask of a loss.

Each function returns its figure, and saves it when given a `path`. A returned figure is closed
for pyplot, so a notebook shows it once, as the value of the cell. No backend is chosen here:
pyplot takes Agg where there is no display, and the inline one in Jupyter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from posttrain.stats import Estimate, mean_over_seeds

# Okabe and Ito's colours, told apart with any colour vision, the faint yellow left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")  # arms differ in print without colour too
MARKS = ("o", "^", "s", "D", "v", "P", "X")
BEFORE = "#8A8A8A"
INK = "#222222"
WIDTH = 7.2  # inches; at 150 dots per inch about the width of a README
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "figure.dpi": 100,
}


class Scored(Protocol):
    """The part of `posttrain.evals.Score` that is drawn."""

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def pass_at_1(self) -> Estimate: ...
    @property
    def pass_at_k(self) -> Estimate: ...
    @property
    def greedy(self) -> Estimate: ...


def curves(
    runs_by_arm: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    key: str,
    *,
    x: str = "step",
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    path: Path | str | None = None,
) -> Figure:
    """Metric `key` against `x`, per arm: each seed thin, their mean thick, a 95 % t band.

    `runs_by_arm` is {arm: [metrics of seed 0, metrics of seed 1, ...]} as `Run.drive` returns
    them. The mean is drawn where all seeds of an arm have a value at the same x; a record
    without `key` (an evaluation every ten steps) is left out. Raises ValueError when an arm has
    no run, KeyError naming the known metrics when no record of a run has `key`.
    """
    _some(runs_by_arm, "arms")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 3.8), layout="constrained")
        for number, (arm, runs) in enumerate(runs_by_arm.items()):
            _some(runs, f"runs of arm {arm!r}")
            _arm(axes, arm, [_series(run, x, key, arm) for run in runs], number)
        axes.set(xlabel=xlabel or x, ylabel=ylabel or key, title=title)
        axes.legend(frameon=False)
    return _finished(figure, path)


def before_after(
    stages: Mapping[str, Scored], *, title: str = "", path: Path | str | None = None
) -> Figure:
    """Grouped bars of pass@1, pass@k and greedy accuracy per stage, with 95 % intervals.

    `stages` is {name: Score}, first the one before. All are drawn from 0 to 1. Raises
    ValueError when empty, or when the scores differ in n or k and so do not compare.
    """
    _some(stages, "stages")
    sizes = {(score.n, score.k) for score in stages.values()}
    if len(sizes) > 1:
        raise ValueError(f"scores with different (n, k) do not compare: {sorted(sizes)}")
    ((n, k),) = sizes
    width = 0.8 / len(stages)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 3.8), layout="constrained")
        # The one before is grey, so that arms have the colours that they have in `curves`.
        colors = [BEFORE, *COLORS]
        for number, (name, score) in enumerate(stages.items()):
            estimates = [score.pass_at_1, score.pass_at_k, score.greedy]
            left = np.arange(3) + width * (number - (len(stages) - 1) / 2)
            _bars(axes, left, estimates, width, name, colors[number % len(colors)])
        axes.set_xticks(range(3), ["pass@1", f"pass@{k}", "greedy"])
        axes.set(ylim=(0, 1.12), ylabel="share of problems", title=title)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(f"{n} problems, thin lines are 95 % intervals", fontsize=9)
        figure.legend(loc="outside lower center", ncols=min(4, len(stages)), frameon=False)
    return _finished(figure, path)


def estimates(
    values: Mapping[str, Estimate],
    *,
    title: str = "",
    xlabel: str = "",
    baseline: float | None = None,
    path: Path | str | None = None,
) -> Figure:
    """One row per name: its value as a dot, its 95 % interval as a line, the number beside it.

    The first, usually the one before, is grey. `baseline` is a vertical line, such as 0.5 for a win
    rate. All in the unit of the values. Raises ValueError when empty.
    """
    _some(values, "estimates")
    with plt.rc_context(STYLE):
        height = 1.0 + 0.42 * len(values)  # inches
        figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
        if baseline is not None:
            axes.axvline(baseline, color="#888888", lw=1, ls="--")
        for row, estimate in enumerate(values.values()):
            color = [BEFORE, *COLORS][row % (1 + len(COLORS))]  # as in `before_after`
            axes.plot([estimate.low, estimate.high], [row, row], color=color, lw=2)
            axes.plot(estimate.value, row, "o", color=color, ms=7)
            axes.annotate(f"{estimate.value:.2f}", (estimate.value, row), xytext=(0, 7),
                          textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        axes.set_yticks(range(len(values)), list(values))
        axes.set(xlabel=xlabel, title=title, ylim=(len(values) - 0.5, -0.7))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    return _finished(figure, path)


def gains(
    points: Mapping[str, tuple[ArrayLike, ArrayLike]],
    fitted: Mapping[str, Callable[[ArrayLike], ArrayLike]] | None = None,
    *,
    title: str = "",
    ylabel: str = "",
    path: Path | str | None = None,
) -> Figure:
    """What optimising gained against how far it went: points per name, with fitted curves.

    `points` is {name: (KLs in nats, gains)}, drawn against the distance sqrt(KL); an estimate of a
    KL that fell below 0 is drawn at 0. `fitted` gives some of the names a curve, from KL to gain,
    as far as its points go. Raises ValueError when empty, or for a curve without points.
    """
    _some(points, "points")
    fitted = fitted or {}
    if strangers := fitted.keys() - points.keys():
        raise ValueError(f"a fitted curve needs its points: none of {sorted(strangers)}")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
        axes.axhline(0, color="#888888", lw=1)
        for number, (name, (kl, gain)) in enumerate(points.items()):
            color = COLORS[number % len(COLORS)]
            away = np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0))
            axes.plot(away, np.asarray(gain), MARKS[number % len(MARKS)], color=color, label=name)
            if name in fitted:
                d = np.linspace(0, away.max(), 200)
                axes.plot(d, np.asarray(fitted[name](d**2)), color=color, lw=1.5)
        axes.set(xlabel="distance from the start, sqrt(KL), KL in nats", ylabel=ylabel, title=title)
        axes.legend(frameon=False)
    return _finished(figure, path)


def token_mask(
    tokens: Sequence[str],
    weights: Sequence[float],
    *,
    columns: int = 76,
    title: str = "",
    positive: str = "trained (weight > 0)",
    path: Path | str | None = None,
) -> Figure:
    """Tokens in reading order, coloured by the weight that the loss gives them.

    `tokens` are decoded strings and `weights` one number each, (T,) and (T,): zero is not
    trained (grey), positive is blue, negative orange, darker for larger; `positive` is what
    the legend says of blue. `columns` characters fit a line. Newlines show as ⏎ and end the line.

    Raises ValueError on different lengths.
    """
    if len(tokens) != len(weights) or not tokens:
        raise ValueError(f"one weight per token: {len(tokens)} tokens, {len(weights)} weights")
    places, rows = _places(tokens, columns)
    largest = max(abs(weight) for weight in weights) or 1.0
    with plt.rc_context({**STYLE, "axes.grid": False}):
        above, below, line = 0.4 if title else 0.08, 0.36, 0.24  # inches: title, legend, a row
        height = above + rows * line + below
        figure = plt.figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.01, below / height, 0.98, rows * line / height))
        axes.set(xlim=(0, columns), ylim=(rows, 0), title=title)
        axes.axis("off")
        size = 72 * WIDTH * 0.98 / columns / 0.602  # a monospaced letter is 0.602 of its size wide
        for (row, column, text), weight in zip(places, weights, strict=True):
            box = Rectangle((column + 0.05, row + 0.06), len(text) - 0.1, 0.88, lw=0)
            box.set_facecolor(_shade(weight / largest))
            axes.add_patch(box)
            ink = "#777777" if weight == 0 else INK
            shown = text.replace(" ", "·") if not text.strip() else text
            axes.text(column, row + 0.5, shown, color=ink, fontsize=size, family="monospace",
                      va="center", parse_math=False)  # fmt: skip
        _legend_of_weights(figure, weights, positive)
    return _finished(figure, path)


def _arm(axes: Axes, arm: str, runs: list[dict[float, float]], number: int) -> None:
    color, dash = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
    for run in runs if len(runs) > 1 else []:
        axes.plot(list(run), list(run.values()), color=color, lw=0.7, alpha=0.35)
    shared = [at for at in runs[0] if all(at in run for run in runs)]
    values = np.array([[run[at] for at in shared] for run in runs])  # (S, steps)
    seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    axes.plot(shared, values.mean(axis=0), color=color, ls=dash, lw=2, label=f"{arm}{seeds}")
    if len(runs) > 1 and np.isfinite(values).all():
        bands = [mean_over_seeds(column) for column in values.T]
        low, high = [b.low for b in bands], [b.high for b in bands]
        axes.fill_between(shared, low, high, color=color, alpha=0.15, lw=0)


def _series(run: Sequence[Mapping[str, float]], x: str, key: str, arm: str) -> dict[float, float]:
    points = {record[x]: record[key] for record in run if key in record and x in record}
    if not points:
        known = ", ".join(sorted({name for record in run for name in record})) or "none"
        raise KeyError(f"arm {arm!r}: no record has both {x!r} and {key!r}; known: {known}")
    return points


def _bars(
    axes: Axes, left: np.ndarray, estimates: list[Estimate], width: float, name: str, color: str
) -> None:
    values = [e.value for e in estimates]
    # Where all items agree, the bounds differ from the value by rounding, to either side.
    below = [max(e.value - e.low, 0.0) for e in estimates]
    above = [max(e.high - e.value, 0.0) for e in estimates]
    axes.bar(left, values, width * 0.92, color=color, label=name)
    axes.errorbar(left, values, yerr=[below, above], fmt="none", ecolor=INK, capsize=3, lw=1.2)
    for at, estimate in zip(left, estimates, strict=True):
        axes.text(at, estimate.high + 0.015, f"{estimate.value:.2f}", ha="center", fontsize=9)


def _places(tokens: Sequence[str], columns: int) -> tuple[list[tuple[int, int, str]], int]:
    """(row, column, text shown) of each token, and the number of rows."""
    places, row, column = [], 0, 0
    for token in tokens:
        text = token.replace("\n", "⏎").replace("\t", "⇥")[:columns] or "∅"
        if column + len(text) > columns:
            row, column = row + 1, 0
        places.append((row, column, text))
        column += len(text)
        if token.endswith("\n"):
            row, column = row + 1, 0
    return places, places[-1][0] + 1


def _shade(weight: float) -> tuple[float, float, float]:
    """White-blended colour of a weight in -1..1: grey at 0, blue above, orange below."""
    if weight == 0:
        return (0.945, 0.945, 0.945)
    strength = 0.15 + 0.40 * abs(weight)
    red, green, blue = to_rgb(COLORS[0] if weight > 0 else COLORS[1])
    return (
        1 - strength * (1 - red),
        1 - strength * (1 - green),
        1 - strength * (1 - blue),
    )


def _legend_of_weights(figure: Figure, weights: Sequence[float], positive: str) -> None:
    kinds = [
        (0.0, "not trained (weight 0)", any(weight == 0 for weight in weights)),
        (1.0, positive, any(weight > 0 for weight in weights)),
        (-1.0, "pushed down (weight < 0)", any(weight < 0 for weight in weights)),
    ]
    patches = [Patch(facecolor=_shade(kind), label=label) for kind, label, there in kinds if there]
    figure.legend(handles=patches, loc="lower left", ncols=len(patches), frameon=False, fontsize=9)


def _some(things: Mapping[str, object] | Sequence[object], what: str) -> None:
    if not things:
        raise ValueError(f"nothing to draw: no {what}")


def _finished(figure: Figure, path: Path | str | None) -> Figure:
    plt.close(figure)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure

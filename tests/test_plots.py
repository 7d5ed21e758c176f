from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from nbclient import NotebookClient

from posttrain.plots import BEFORE, COLORS, before_after, curves, estimates, gains, token_mask
from posttrain.stats import Estimate, mean_over_seeds


def run(values: list[float]) -> list[dict[str, float]]:
    return [{"step": float(i + 1), "reward": value} for i, value in enumerate(values)]


def data(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_data()).tolist()


def score(at_1: float, n: int = 500) -> Any:
    low, high = max(0.0, at_1 - 0.1), min(1.0, at_1 + 0.05)
    return SimpleNamespace(
        n=n,
        k=16,
        pass_at_1=Estimate(at_1, low, high),
        pass_at_k=Estimate(0.9, 0.85, 0.95),
        greedy=Estimate(0.5, 0.4, 0.6),
    )


def test_curves_draw_each_seed_their_mean_and_a_t_band() -> None:
    runs = {"a": [run([0, 2, 4]), run([1, 3, 8])], "b": [run([5, 5, 5])]}
    axes = curves(runs, "reward").axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    mean_a, mean_b = [line for line in axes.lines if line.get_linewidth() > 1]
    assert [data(line)[1] for line in thin] == [[0, 2, 4], [1, 3, 8]]
    assert data(mean_a)[1] == [0.5, 2.5, 6]
    assert data(mean_b)[0] == [1, 2, 3]
    (band,) = axes.collections  # one seed has no band
    drawn = np.asarray(band.get_paths()[0].vertices)
    assert np.max(drawn[:, 1]) == pytest.approx(mean_over_seeds([4, 8]).high)
    assert np.min(drawn[:, 1]) == pytest.approx(mean_over_seeds([4, 8]).low)
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["a (2 seeds)", "b"]


def test_curves_use_steps_that_all_seeds_have_and_skip_records_without_the_key() -> None:
    sparse = [{"step": 1.0, "loss": 0.5}, {"step": 2.0, "reward": 4.0}]
    axes = curves({"a": [sparse, run([0, 2, 9])]}, "reward").axes[0]
    (mean,) = [line for line in axes.lines if line.get_linewidth() > 1]
    assert data(mean) == [[2], [3]]


def test_bars_have_the_heights_and_intervals_of_the_scores() -> None:
    figure = before_after({"base": score(0.3), "tuned": score(0.7)})
    axes = figure.axes[0]
    bars = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert [bar.get_height() for bar in bars] == [0.3, 0.9, 0.5, 0.7, 0.9, 0.5]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars[::3]] == [BEFORE, COLORS[0]]
    segments = [s for c in axes.collections for s in c.get_segments()]  # type: ignore[attr-defined]
    np.testing.assert_allclose(segments[0][:, 1], [0.2, 0.35])
    np.testing.assert_allclose(segments[3][:, 1], [0.6, 0.75])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["pass@1", "pass@16", "greedy"]
    assert "500 problems" in axes.get_xlabel()
    assert axes.get_ylim()[0] == 0


def test_tokens_are_coloured_by_weight_in_reading_order() -> None:
    tokens = ["<|user|>", "\n", "two", " dogs", "$x$", "\n", "four"]
    figure = token_mask(tokens, [0, 0, 0, 0, 0.5, 1, -1], columns=9)
    boxes = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    places = [(round(b.get_y() - 0.06), round(b.get_x() - 0.05)) for b in boxes]
    assert places == [(0, 0), (0, 8), (1, 0), (1, 3), (2, 0), (2, 3), (3, 0)]
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["<|user|>", "⏎", "two", " dogs", "$x$", "⏎", "four"]
    red, _, blue = zip(*(b.get_facecolor()[:3] for b in boxes), strict=True)
    assert red[0] == blue[0]  # not trained: grey
    assert blue[4] > red[4]  # trained: blue
    assert red[5] < red[4]  # a larger weight is darker
    assert red[6] > blue[6]  # pushed down: orange


def test_text_of_a_token_fits_its_box() -> None:
    tokens = ["W" * 10, "i" * 30, " " * 5, "word"]
    figure = token_mask(tokens, [1, 1, 1, 1])
    figure.canvas.draw()
    axes = figure.axes[0]
    for text, box in zip(axes.texts, axes.patches, strict=True):
        ratio = text.get_window_extent().width / box.get_window_extent().width
        assert 0.9 < ratio < 1.1


def test_figures_are_saved_and_not_left_open(tmp_path: Path) -> None:
    before_after({"base": score(0.3)}, path=tmp_path / "new" / "bars.png")
    assert (tmp_path / "new" / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_a_notebook_shows_a_figure_once(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from posttrain.plots import token_mask\ntoken_mask(['a', 'b'], [0, 1])"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    (output,) = notebook.cells[0].outputs
    assert "image/png" in output["data"]


def test_gains_are_drawn_against_the_distance_with_the_fits_beside_them() -> None:
    points = {"gold": ([-0.1, 4.0, 9.0], [0.0, 2.0, 1.0]), "proxy": ([4.0], [3.0])}
    axes = gains(points, {"gold": lambda kl: 2 * np.asarray(kl)}).axes[0]
    zero, gold, fitted, proxy = axes.lines
    assert data(zero)[1] == [0, 0]
    assert data(gold) == [[0, 2, 3], [0, 2, 1]]
    assert data(proxy) == [[2], [3]]
    distance, gain = data(fitted)
    assert (distance[0], distance[-1]) == (0, 3)  # as far as the points
    np.testing.assert_allclose(gain, 2 * np.square(distance))
    assert fitted.get_color() == gold.get_color() != proxy.get_color()
    with pytest.raises(ValueError, match=r"needs its points: none of \['x'\]"):
        gains(points, {"x": lambda kl: kl})


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no arms"):
        curves({}, "reward")
    with pytest.raises(ValueError, match="no runs of arm 'a'"):
        curves({"a": []}, "reward")
    with pytest.raises(KeyError, match=r"arm 'a': no record has both 'step' and 'rewrd'.*reward"):
        curves({"a": [run([1, 2])]}, "rewrd")
    with pytest.raises(ValueError, match="do not compare"):
        before_after({"base": score(0.3), "tuned": score(0.3, n=10)})
    with pytest.raises(ValueError, match="2 tokens, 1 weights"):
        token_mask(["a", "b"], [1])


def test_bounds_that_rounding_put_on_the_wrong_side_are_drawn_as_no_error() -> None:
    exact = score(0.3)
    exact.greedy = Estimate(0.7, 0.7000000000000001, 0.6999999999999998)
    axes = before_after({"base": exact}).axes[0]
    segments = [s for c in axes.collections for s in c.get_segments()]  # type: ignore[attr-defined]
    assert segments[2][:, 1].tolist() == [0.7, 0.7]


def test_estimates_are_drawn_where_they_are() -> None:
    values = {"start": Estimate(6.0, 5.5, 6.4), "DPO": Estimate(8.0, 7.0, 9.0)}
    axes = estimates(values, title="Gold", xlabel="points", baseline=5.0).axes[0]
    baseline, *drawn = axes.lines
    assert data(baseline)[0] == [5.0, 5.0]
    for row, (estimate, color) in enumerate(zip(values.values(), [BEFORE, COLORS[0]], strict=True)):
        interval, dot = drawn[2 * row : 2 * row + 2]
        assert data(interval) == [[estimate.low, estimate.high], [row, row]]
        assert data(dot) == [[estimate.value], [row]]
        assert interval.get_color() == dot.get_color() == color
    assert [label.get_text() for label in axes.get_yticklabels()] == ["start", "DPO"]
    assert [text.get_text() for text in axes.texts] == ["6.00", "8.00"]
    bottom, top = axes.get_ylim()
    assert top < 0 < 1 < bottom  # the first row is the highest
    with pytest.raises(ValueError, match="no estimates"):
        estimates({})

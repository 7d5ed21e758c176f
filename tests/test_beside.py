"""`posttrain compare`: columns of run folders and results files, and the tables made of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.lab.beside import at_end, beside, columns
from posttrain.ledger import Ledger
from posttrain.runs import Metrics, Run, write_json, write_results

SHIPPED = Path(__file__).parents[1] / "methods"


class Saved:
    """A training client that saves nothing."""

    path = "tinker://x/weights/y"

    def save_state(self, name: str) -> "Saved":
        return self

    def result(self) -> "Saved":
        return self


def steps(reward: float, count: int = 20) -> Iterator[Metrics]:
    for i in range(count):
        yield {"reward": reward + i, "tokens": 100.0, **({"kl": 0.5} if i == 0 else {})}


def made(folder: Path, reward: float, **config: object) -> str:
    run = Run.open(folder, {"task": "math", "rlvr": {"steps": 20}, **config})
    run.drive(Saved(), steps(reward), 20)  # type: ignore[arg-type]
    write_json(folder / "samples.json", [{"question": "1+1?", "answer": f"[{reward:g}]"}])
    return str(folder)


def shown(*names: str) -> str:
    console = Console(width=160)
    with console.capture() as taken:
        console.print(beside([column for name in names for column in columns(name)]))
    return "\n".join(" ".join(line.replace("│", " ").split()) for line in taken.get().splitlines())


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    text = shown(made(tmp_path / "a", 1.0, seed=0), made(tmp_path / "b", 2.0, seed=1))
    assert "The same: task math, rlvr.steps 20" in text
    assert "\nseed 0 1\n" in text
    assert "\nstep 20 20\n" in text
    assert "\nreward 19.5 20.5\n" in text  # the mean of the last two of 20 steps
    assert "\nkl 0.5 0.5\n" in text
    assert "\ntrained_tokens 2,000 2,000\n" in text
    assert "\n1+1? [1] [2]\n" in text


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Metrics]:
        yield from steps(0.0, 7)
        raise KeyboardInterrupt

    run = Run.open(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        run.drive(Saved(), interrupted(), 20, every=5)  # type: ignore[arg-type]
    (column,) = columns(str(tmp_path))
    assert column.metrics["step"] == "5, unfinished"
    assert column.budget is not None
    assert column.budget.optimizer_steps == 5


def test_the_end_is_the_mean_of_the_last_tenth_where_there_is_a_value() -> None:
    lines = [{"a": float(i)} | ({"b": float(i)} if i % 10 == 0 else {}) for i in range(100)]
    assert at_end(lines) == {"a": 94.5, "b": 90.0}
    assert at_end([]) == {}


def test_arms_of_an_experiment_are_columns_with_their_intervals(tmp_path: Path) -> None:
    ledger = Ledger(optimizer_steps=3, trained_tokens=10)
    runs = [{"seed": s, "metrics": {"x": 0.5}, "ledger": ledger.to_json()} for s in (0, 1)]
    arms: dict[str, dict[str, Any]] = {
        "one": {"runs": runs, "summary": {"x": {"value": 0.5, "low": 0.25, "high": 0.75}}},
        "two": {"runs": runs[:1], "summary": {}},
    }
    write_results(
        tmp_path, "methods/x", scale="smoke", backend="", model="m", seeds=[0, 1],
        config={"task": "math"}, arms=arms, claims=[], ledger=ledger,
    )  # fmt: skip
    one, two = columns(str(tmp_path))
    assert (one.name, one.metrics["x"]) == (f"{tmp_path}: one", "0.500 [0.250, 0.750]")
    assert two.metrics["x"] == "0.5"
    assert one.budget == Ledger(6, 20)
    assert "\noptimizer_steps 6 3\n" in shown(str(tmp_path / "results.json"))


@pytest.mark.parametrize("method", ["sft", "rlvr"])
def test_the_published_results_can_be_shown(method: str) -> None:
    results = json.loads((SHIPPED / method / "results.json").read_text())
    found = columns(str(SHIPPED / method))
    assert [column.name.split(": ")[1] for column in found] == list(results["arms"])
    assert "test/pass@1" in shown(str(SHIPPED / method))


def test_stages_of_the_main_job_are_columns(tmp_path: Path) -> None:
    score = {"n": 12, "pass_at_1": {"value": 0.5, "low": 0.4, "high": 0.6}, "correct_counts": [1]}
    write_json(tmp_path / "results.json", {
        "commit": "x", "scale": "smoke", "task": "math", "model": "m", "seed": 0,
        "stages": {"base": score, "SFT": score}, "ledger": Ledger().to_json(),
    })  # fmt: skip
    base, trained = columns(str(tmp_path))
    assert trained.name == f"{tmp_path}: SFT"
    assert base.metrics == {"n": "12", "pass_at_1": "0.500 [0.400, 0.600]"}
    assert base.budget is None


def test_what_is_no_run_is_refused_with_what_is_inside(tmp_path: Path) -> None:
    made(tmp_path / "deep" / "rlvr", 1.0)
    with pytest.raises(ValueError, match=r"neither a run folder nor .*inside are .*/deep/rlvr"):
        columns(str(tmp_path))
    with pytest.raises(ValueError, match=r"nowhere is not there$"):
        columns(str(tmp_path / "nowhere"))
    (tmp_path / "results.json").write_text('{"x": 1}')
    with pytest.raises(ValueError, match="not a results file of this repository: KeyError"):
        columns(str(tmp_path))
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        columns(str(tmp_path))
    with pytest.raises(ValueError, match="nothing to compare"):
        beside([])

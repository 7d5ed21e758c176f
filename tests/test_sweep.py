"""A sweep: validation items only, each arm's own rates, and what is finished is not run again."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.lab.arms import EXPERIMENTS
from posttrain.lab.compare import Experiment, Measured, Trained, sweep
from posttrain.lab.worlds import World, world_of
from posttrain.ledger import Ledger
from posttrain.scale import Scale

SEEN: list[tuple[World, int, float]] = []


def arm(service: Any, world: World, folder: Path, seed: int, *, rate: float) -> Trained:
    SEEN.append((world, seed, rate))
    stage: Any = SimpleNamespace(rate=rate)
    return Trained(stage, Ledger())


def measured(trained: Trained, world: World) -> Measured:
    rate = trained.stage.rate  # type: ignore[attr-defined]
    return Measured({"test/pass@1": 10 * rate, "ood/pass@1": 1.0, "test/greedy": 0.5}, {}, "")


@pytest.fixture
def experiment() -> Experiment:
    SEEN.clear()
    return replace(
        EXPERIMENTS["sft"], arms={"a": arm, "b c": arm}, rates={"a": (0.01, 0.02)},
        measure=measured, swept=0.25, longer=True, chosen_by=("test/pass@1", "ood/pass@1"),
    )  # fmt: skip


def test_a_sweep_reads_validation_items_and_keeps_what_it_found(
    experiment: Experiment, tmp_path: Path
) -> None:
    whole = world_of(Scale.SMOKE)
    runs, results = tmp_path / "runs", tmp_path / "not" / "there" / "yet"
    service: Any = None
    table = sweep(service, experiment, lambda seed: whole, runs, results)
    assert table == {
        "test/pass@1": {"a": {"0.01": pytest.approx(0.1), "0.02": pytest.approx(0.2)}},
        "ood/pass@1": {"a": {"0.01": 1.0, "0.02": 1.0}},
    }
    stored = json.loads((results / "sweep.json").read_text())
    assert stored["test/pass@1"] == table["test/pass@1"]
    assert [(seed, rate) for _, seed, rate in SEEN] == [(100, 0.01), (100, 0.02)]
    world = SEEN[0][0]
    assert world.effort == 0.25
    validation = {item.key for item in whole.validation}
    assert {item.key for item in world.test} <= validation
    used_later = {item.key for item in whole.ood[: len(whole.ood) // 2]}  # as `measure` takes them
    assert world.ood
    assert not {item.key for item in world.ood} & used_later
    assert sweep(service, experiment, lambda seed: whole, runs, results) == table
    assert len(SEEN) == 2


def test_another_task_has_files_of_its_own(experiment: Experiment, tmp_path: Path) -> None:
    code, service = world_of(Scale.SMOKE, "code"), None
    sweep(service, experiment, lambda seed: code, tmp_path / "runs", tmp_path)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.glob("*.json")] == ["code.sweep.json"]
    assert experiment.file("results", "math") == "results.json"
    assert experiment.file("results", "gsm8k") == "gsm8k.results.json"

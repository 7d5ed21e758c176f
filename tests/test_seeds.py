"""Seeds in processes of their own give what one process gives, and a failed seed is named."""

import json
from functools import partial
from pathlib import Path

import pytest
import tinker

from posttrain.lab.arms import EXPERIMENTS
from posttrain.lab.compare import compare
from posttrain.lab.seeds import run_seeds
from posttrain.scale import Scale
from tests.test_cli import posttrain


def test_parallel_seeds_give_the_results_of_serial_ones(
    base_service: tinker.ServiceClient, tmp_path: Path
) -> None:
    experiment, serial, parallel = EXPERIMENTS["sft"], tmp_path / "serial", tmp_path / "parallel"
    worlds = partial(experiment.world, Scale.SMOKE, None)
    compare(base_service, experiment, worlds, [3, 4], serial, serial)
    words = ["run", "sft", "--scale", "smoke", "--seeds", "2", "--seed", "3", "--jobs", "2"]
    done = posttrain(*words, "--out", str(parallel))
    assert done.returncode == 0, done.stderr
    results = [json.loads((out / "results.json").read_text()) for out in (serial, parallel)]
    one, other = ([arm["summary"] for arm in r["arms"].values()] for r in results)
    assert one == other
    assert results[1]["seeds"] == [3, 4]
    assert "seed 4 | " in done.stdout


def test_a_failed_seed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"seeds \[1, 2\] failed"):
        run_seeds(["run", "unknown"], [1, 2], jobs=2)
    assert "unknown method" in capfd.readouterr().out

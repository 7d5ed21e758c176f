"""Seeds in processes of their own give what one process gives, and a failed seed is named."""

import json
from pathlib import Path

import pytest

from posttrain.lab.seeds import run_seeds
from tests.test_cli import posttrain


def test_parallel_seeds_give_the_results_of_serial_ones(tmp_path: Path) -> None:
    common = ["run", "sft", "--scale", "smoke", "--seeds", "2", "--seed", "3"]
    for jobs in ("1", "2"):
        done = posttrain(*common, "--jobs", jobs, "--out", str(tmp_path / jobs))
        assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / j / "results.json").read_text()) for j in ("1", "2")]
    serial, parallel = ([arm["summary"] for arm in r["arms"].values()] for r in results)
    assert serial == parallel
    assert results[1]["seeds"] == [3, 4]
    assert "seed 4 | " in done.stdout


def test_a_failed_seed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"seeds \[1, 2\] failed"):
        run_seeds(["run", "unknown"], [1, 2], jobs=2)
    assert "unknown method" in capfd.readouterr().out

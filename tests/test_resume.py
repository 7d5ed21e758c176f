from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest
import tinker

from posttrain.lab.stage import Steps, run_stage
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.runs import Metrics, Run
from posttrain.scale import Scale
from posttrain.tasks.problem import Demonstration


def test_a_resumed_run_trains_to_the_same_bits(
    tmp_path: Path, service: tinker.ServiceClient
) -> None:
    """On the embedded engine: interrupted after a checkpoint, and driven through in one go."""
    cfg = sft.Config(steps=6, batch_size=2)
    shown = [Demonstration(f"{i}+1", f"{i + 1}") for i in range(5)]

    def fresh() -> tinker.TrainingClient:
        return service.create_lora_training_client("posttrain/tiny", rank=4, seed=7).result()

    def interrupted(policy: tinker.TrainingClient) -> Iterator[Metrics]:
        yield from islice(sft.train(policy, shown, cfg), 5)
        raise KeyboardInterrupt

    policy = fresh()
    through = Run.open(tmp_path / "through", asdict(cfg))
    expected = through.drive(policy, sft.train(policy, shown, cfg), cfg.steps)

    policy, run = fresh(), Run.open(tmp_path / "resumed", asdict(cfg))
    with pytest.raises(KeyboardInterrupt):
        run.drive(policy, interrupted(policy), cfg.steps, every=3)
    run = Run.open(tmp_path / "resumed", asdict(cfg))
    assert (run.step, run.checkpoint is None) == (3, False)
    again = service.create_training_client_from_state_with_optimizer(run.checkpoint or "").result()
    metrics = run.drive(again, sft.train(again, shown, cfg, start=run.step), cfg.steps, every=3)
    assert [m["loss"] for m in metrics] == [m["loss"] for m in expected]
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_an_interrupted_stage_goes_on_with_its_optimizer(
    tmp_path: Path, service: tinker.ServiceClient
) -> None:
    """As the lab trains, which saves every 20 steps; Adam remembers the ones before."""
    world = replace(world_of(Scale.SMOKE, model="posttrain/tiny"), rank=4, test=())
    cfg = sft.Config(steps=23, batch_size=1)
    shown = [Demonstration(f"{i}+1", f"{i + 1}") for i in range(5)]

    def whole(policy: tinker.TrainingClient, at: int) -> Iterator[Metrics]:
        return sft.train(policy, shown, cfg, start=at)

    def interrupted(policy: tinker.TrainingClient, at: int) -> Iterator[Metrics]:
        yield from islice(whole(policy, at), 21)
        raise KeyboardInterrupt

    def losses(name: str, steps: Steps) -> list[float]:
        return [m["loss"] for m in run_stage(service, world, tmp_path / name, steps, cfg).metrics]

    expected = losses("through", whole)
    with pytest.raises(KeyboardInterrupt):
        losses("resumed", interrupted)
    assert losses("resumed", whole) == expected

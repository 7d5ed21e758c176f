"""A learned reward measured beside gold: against recomputation from the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import tinker

from posttrain.lab.compare import Picked, Trained
from posttrain.lab.raters import READER
from posttrain.lab.rewarded import on_rewarded_texts
from posttrain.lab.stage import Stage
from posttrain.lab.texts import on_texts
from posttrain.lab.worlds import world_of
from posttrain.ledger import Ledger
from posttrain.methods.rlvr import each
from posttrain.rollouts import sample_answers
from posttrain.scale import Scale
from posttrain.tasks.gold import gold
from posttrain.tasks.stories import Request
from tests.test_texts import REQUESTS, told


def test_a_learned_reward_is_measured_beside_gold(
    service: tinker.ServiceClient, tiny_model_dir: Path
) -> None:
    """A reward of 1 a word. The reference, a random model, never ends; the arm's answers are picked
    for it, and so is their distance."""
    reference = service.create_sampling_client(base_model=str(tiny_model_dir)).result()
    world = replace(world_of(Scale.SMOKE, "stories"), test=REQUESTS, k=2, max_tokens=8)
    ours = [[told(r.solution), told("Once a fox.")] for r in REQUESTS]
    reward = each(lambda item, text: float(len(text.split())))
    stage = Stage(None, reference, "", [], tiny_model_dir)  # type: ignore[arg-type]
    picked = Picked(ours, kl=1.5)
    trained = Trained(stage, Ledger(), reference, READER, reward, picked)
    found = on_rewarded_texts(trained, world)
    theirs = sample_answers(reference, REQUESTS, 2, max_tokens=8, seed=0)

    def means(value: Callable[[Request, str], float]) -> list[list[float]]:
        return [
            [mean(value(r, x.text) for x in group) for r, group in zip(REQUESTS, all_, strict=True)]
            for all_ in (ours, theirs)
        ]

    proxy, before = means(lambda request, text: float(len(text.split())))
    golds, golds_before = means(gold)
    told_of = zip(proxy, before, golds, golds_before, strict=True)
    overrated = [a - b - (c - d) for a, b, c, d in told_of]
    assert found.items["test/proxy"] == pytest.approx(proxy)
    assert found.items["test/overrated"] == pytest.approx(overrated)
    assert found.metrics["test/overrated"] == pytest.approx(mean(overrated))
    assert found.metrics["test/gold"] == pytest.approx(mean(golds))
    assert found.metrics["test/kl"] == 1.5
    itself = replace(trained, picked=None)  # what the reference samples, against the same
    plain = on_rewarded_texts(itself, world)
    assert plain.items["test/overrated"] == [0.0] * 4
    assert plain.metrics["test/kl"] == pytest.approx(0, abs=1e-3)
    none = on_rewarded_texts(replace(itself, rater=replace(READER, gold=None)), world)
    assert not {"test/gold", "test/overrated"} & none.metrics.keys()
    assert none.items["test/proxy"] == pytest.approx(before)
    # What it has in common with the measure of other texts is the same.
    usual = on_texts(itself, world)
    assert usual.metrics == pytest.approx(
        {name: plain.metrics[name] for name in usual.metrics}, abs=1e-4
    )
    assert usual.items == {name: plain.items[name] for name in usual.items}
    with pytest.raises(ValueError, match="a rater and a learned reward"):
        on_rewarded_texts(replace(itself, reward=None), world)

"""Texts measured: against recomputation from the rollouts, and gold by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import tinker

from posttrain.lab import raters
from posttrain.lab.compare import Picked, Trained
from posttrain.lab.raters import READER, by_gold, rater_of
from posttrain.lab.stage import Stage
from posttrain.lab.texts import on_texts, score_texts
from posttrain.lab.worlds import world_of
from posttrain.ledger import Ledger
from posttrain.methods.rlvr import each
from posttrain.rollouts import Rollout, kl_from, sample_answers
from posttrain.scale import Scale
from posttrain.tasks.gold import gold
from posttrain.tasks.stories import Flaw, Request, stories, write
from tests.test_pairs import Ask

REQUESTS = stories("test", 4)


def told(text: str, *, finished: bool = True) -> Rollout:
    """As a sampler of the tiny model would have told it: a byte is a token."""
    tokens = [*text.encode()[:40], 256]
    return Rollout([*b"Q"], tokens, [-1.0] * len(tokens), text, finished)


def test_scores_are_those_of_the_texts(service: tinker.ServiceClient, tiny_model_dir: Path) -> None:
    reference = service.create_sampling_client(base_model=str(tiny_model_dir)).result()
    ours = [[told(r.solution), told("Once.", finished=i > 0)] for i, r in enumerate(REQUESTS)]
    poor = [[f"the {r.hero}", r.solution] for r in REQUESTS]
    theirs = [[told(text) for text in texts] for texts in poor]
    score = score_texts(reference, REQUESTS, ours, theirs, READER)
    values = [[gold(r, x.text) for x in group] for r, group in zip(REQUESTS, ours, strict=True)]
    assert score.gold is not None
    assert score.golds is not None
    assert score.golds.tolist() == pytest.approx([mean(row) for row in values])
    assert score.gold.value == pytest.approx(mean(mean(row) for row in values))
    assert score.gold.low < score.gold.value < score.gold.high
    # The good story beats two words, one word loses to the good story: a draw for each item.
    assert score.won.wins.tolist() == [0.5] * 4
    assert score.length.value == mean(len(x.tokens) for group in ours for x in group)
    # Whole stories are of the asked form; a single sentence is not, however it ends.
    assert score.well_formed == 0.5
    assert score.won.truncated == 1
    everything = [x for group in ours for x in group]
    assert score.won.kl == pytest.approx(kl_from(reference, everything), abs=1e-4)


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
    found = on_texts(Trained(stage, Ledger(), reference, READER, reward, picked), world)
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
    plain = on_texts(
        Trained(stage, Ledger(), reference, READER, reward), world
    )  # it against itself
    assert plain.items["test/overrated"] == [0.0] * 4
    assert plain.metrics["test/kl"] == pytest.approx(0, abs=1e-3)
    none = on_texts(Trained(stage, Ledger(), reference, replace(READER, gold=None), reward), world)
    assert not {"test/gold", "test/overrated"} & none.metrics.keys()
    assert none.items["test/proxy"] == pytest.approx(before)


def test_by_gold_prefers_what_is_better_and_is_indifferent_between_equals() -> None:
    for request in REQUESTS:
        good, poor = request.solution, write(request, random.Random(1), {Flaw.REPEATS})
        assert gold(request, good) > gold(request, poor)
        assert by_gold(request, good, poor) == 1.0
        assert by_gold(request, poor, good) == 0.0
        assert by_gold(request, good, good) == 0.5


def test_graded_tasks_have_nobody_who_compares(base_service: tinker.ServiceClient) -> None:
    with pytest.raises(ValueError, match="nobody compares answers to the task 'math'"):
        rater_of(base_service, world_of(Scale.SMOKE, "math"))


def test_an_arm_without_a_reference_is_named() -> None:
    world = world_of(Scale.SMOKE, "stories")
    with pytest.raises(ValueError, match="an arm has to return a reference and a rater"):
        on_texts(Trained(None, Ledger()), world)  # type: ignore[arg-type]


def test_a_judge_model_labels_by_the_mean_of_both_orders(
    base_service: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that likes the first place by more than it likes an answer still says which."""

    def biased(item: Ask, a: str, b: str) -> float:
        return 0.7 + 0.1 * (a == "good") - 0.1 * (b == "good")

    monkeypatch.setattr(raters, "pairwise", lambda sampler: biased)
    world = replace(world_of(Scale.SMOKE, "stories"), task="other", judge="posttrain/base")
    rater = rater_of(base_service, world)
    assert rater.label(Ask("Q"), "good", "bad", 0) is True
    assert rater.label(Ask("Q"), "bad", "good", 0) is False
    assert rater.label(Ask("Q"), "bad", "worse", 0) is None
    assert rater.gold is None
    assert rater.readable("x")
    assert not rater.readable(" \n")

"""Texts measured: against recomputation from the rollouts, and gold by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import tinker

from posttrain.lab import raters
from posttrain.lab.compare import Trained
from posttrain.lab.raters import READER, by_gold, rater_of
from posttrain.lab.texts import on_texts, score_texts
from posttrain.lab.worlds import world_of
from posttrain.ledger import Ledger
from posttrain.rollouts import Rollout, kl_from
from posttrain.scale import Scale
from posttrain.tasks.gold import gold
from posttrain.tasks.stories import Flaw, stories, write
from tests.test_pairs import Ask

REQUESTS = stories("test", 4)


def told(text: str, *, finished: bool = True) -> Rollout:
    """As a sampler of the tiny model would have told it: a byte is a token.

    That model has no room for a whole story, so its tokens are of a conversation, in two turns.
    """
    tokens, turns = [*text.encode()[:40], 256], (text[:40], text[40:])
    return Rollout([*b"Q"], tokens, [-1.0] * len(tokens), text, finished, turns=turns)


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

"""What a learned reward promises of a policy's texts, beside how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from posttrain.lab.compare import Measured, Trained
from posttrain.lab.raters import Rater
from posttrain.lab.texts import score_texts
from posttrain.lab.worlds import World
from posttrain.rollouts import Rollout, sample_answers
from posttrain.tasks.problem import Item


def gold_means(
    rater: Rater, items: Sequence[Item], groups: Sequence[Sequence[Rollout]]
) -> NDArray[np.float64] | None:
    """(I,) mean hidden quality of the answers to each item; None where nobody knows it."""
    gold = rater.gold
    if gold is None:
        return None
    pairs = zip(items, groups, strict=True)
    return np.array([np.mean([gold(item, r.text) for r in group]) for item, group in pairs])


def on_rewarded_texts(trained: Trained, world: World) -> Measured:
    """What `posttrain.lab.texts.on_texts` measures, of answers that may have been picked; and
    `proxy`, the mean of the learned reward. Where gold is known, also `overrated`: how much more
    the proxy has gained on the reference than gold has, on the same items.

    Raises:
        ValueError: the arm did not say whom its policy is compared with, by whom, or the reward.
    """
    reference, rater, reward = trained.reference, trained.rater, trained.reward
    if reference is None or rater is None or reward is None:
        raise ValueError("an arm has to return a reference, a rater and a learned reward too")
    sample = partial(
        sample_answers, items=world.test, answers=world.k, max_tokens=world.max_tokens, seed=0
    )
    theirs = sample(reference)
    ours = trained.picked.groups if trained.picked else sample(trained.stage.sampler)
    score = score_texts(reference, world.test, ours, theirs, rater)
    proxies, before = (
        reward(world.test, groups)[0].double().mean(1).numpy() for groups in (ours, theirs)
    )
    values = {"test/proxy": proxies, "test/win_rate": score.won.wins}
    golds, golds_before = score.golds, gold_means(rater, world.test, theirs)
    if golds is not None and golds_before is not None:
        values["test/gold"] = golds
        values["test/overrated"] = (proxies - before) - (golds - golds_before)
    metrics = {name: float(each.mean()) for name, each in values.items()} | {
        "test/tokens": score.length.value,
        "test/kl": trained.picked.kl if trained.picked else score.won.kl,
        "test/well_formed": score.well_formed,
        "test/near_pairs": float(score.won.near_pairs),
    }
    if score.won.near_win_rate is not None:
        metrics["test/near_win_rate"] = score.won.near_win_rate.value
    return Measured(metrics, {name: each.tolist() for name, each in values.items()}, str(score))

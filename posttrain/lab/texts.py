"""How good a policy's texts are where none is right or wrong, beside those of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tinker
from numpy.typing import NDArray

from posttrain.lab.compare import Measured, Trained
from posttrain.lab.raters import Rater
from posttrain.lab.worlds import World
from posttrain.rollouts import Rollout, sample_answers
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks.problem import Item
from posttrain.win_rate import WinRate, compare_answers


@dataclass(frozen=True, eq=False)
class TextScore:
    """Texts of a policy, measured; intervals from resampling items."""

    gold: Estimate | None  # mean hidden quality, in its points; None where nobody knows it
    won: WinRate  # against the reference: win rate, length difference, KL
    length: Estimate  # tokens per answer
    well_formed: float  # share of answers of the asked form that end by themselves
    golds: NDArray[np.float64] | None  # (I,) mean per item, for paired comparisons

    def __str__(self) -> str:
        known = "" if self.gold is None else f"gold {self.gold}  "
        return (
            f"{known}{self.won}  {self.length.value:.0f} tokens, well-formed {self.well_formed:.0%}"
        )


def score_texts(
    reference: tinker.SamplingClient,
    items: Sequence[Item],
    ours: Sequence[Sequence[Rollout]],
    theirs: Sequence[Sequence[Rollout]],
    rater: Rater,
) -> TextScore:
    """Measure `ours`, the policy's answers to `items`, against `theirs`, those of `reference`."""
    flat = [rollout for group in ours for rollout in group]
    golds = None
    if rater.gold is not None:
        golds = np.array(
            [
                np.mean([rater.gold(item, rollout.text) for rollout in group])
                for item, group in zip(items, ours, strict=True)
            ]
        )
    return TextScore(
        gold=None if golds is None else bootstrap_mean(golds),
        won=compare_answers(reference, items, ours, theirs, rater.judge),
        length=bootstrap_mean([[len(r.tokens) for r in group] for group in ours]),
        well_formed=sum(r.finished and rater.readable(r.text) for r in flat) / len(flat),
        golds=golds,
    )


def on_texts(trained: Trained, world: World) -> Measured:
    """What an experiment measures on the held-out items of a world without right answers.

    Raises:
        ValueError: the arm did not say whom its policy is compared with, and by whom.
    """
    reference, rater = trained.reference, trained.rater
    if reference is None or rater is None:
        raise ValueError("texts are compared: an arm has to return a reference and a rater too")
    ours, theirs = (
        sample_answers(sampler, world.test, world.k, max_tokens=world.max_tokens, seed=0)
        for sampler in (trained.stage.sampler, reference)
    )
    score = score_texts(reference, world.test, ours, theirs, rater)
    metrics = {
        "test/win_rate": score.won.win_rate.value,
        "test/tokens": score.length.value,
        "test/kl": score.won.kl,
        "test/well_formed": score.well_formed,
        "test/near_pairs": float(score.won.near_pairs),
    }
    items = {"test/win_rate": score.won.wins.tolist()}
    if score.won.near_win_rate is not None:
        metrics["test/near_win_rate"] = score.won.near_win_rate.value
    if score.gold is not None and score.golds is not None:
        metrics["test/gold"] = score.gold.value
        items["test/gold"] = score.golds.tolist()
    return Measured(metrics, items, str(score))

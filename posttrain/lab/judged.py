"""What a judge of criteria credits a policy's texts with, beside the exact check and gold.

The judged score and the exact score are one formula, the weighted sum of a rubric, of the judge's
credits and of the exact ones. So their difference is what the judge pays for nothing, and it is a
sum over criteria: it says where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from posttrain.lab.compare import Measured, Trained
from posttrain.lab.raters import Rater
from posttrain.lab.texts import score_texts
from posttrain.lab.worlds import World
from posttrain.methods.rlvr import Reward
from posttrain.methods.rubric_judges import (
    Case,
    Judge,
    agreement_shares,
    by_subject,
    settled,
    subject,
)
from posttrain.methods.rubric_rl import WEIGHTS, weighted_sum
from posttrain.rollouts import Rollout, sample_answers
from posttrain.tasks.problem import Item
from posttrain.tasks.rubrics import Importance, check, rubric

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """Texts as a judge sees them, and as they are. Scores are weighted sums, at most 1."""

    judged: Array  # (I,) mean score of each item's texts by the judge
    exact: Array  # (I,) the same by the exact check
    essentials: Array  # (I,) share of texts that have all that is essential, exactly
    shares: dict[str, float]  # agreement, false_credit, false_denial, over all cases
    met: dict[str, float]  # by subject, in [0, 1]: how far its criteria are met, exactly
    parts: dict[str, float]  # of what is overpaid, by subject, points a text; their sum is the mean

    @property
    def overpaid(self) -> Array:
        """(I,) what the judge pays for nothing; below 0 where it pays less than is due."""
        return self.judged - self.exact

    def __str__(self) -> str:
        return (
            f"judged {self.judged.mean():.3f}  exact {self.exact.mean():.3f}  "
            f"agreement {self.shares['agreement']:.3f}"
        )


def judge_texts(judge: Judge, items: Sequence[Item], groups: Sequence[Sequence[Rollout]]) -> Judged:
    """Ask `judge` about every criterion of every text, and the exact check too."""
    texts = [(item, rollout.text) for item, g in zip(items, groups, strict=True) for rollout in g]
    cases = [Case(item, criterion, text) for item, text in texts for criterion in rubric(item)]
    credits = settled(cases, judge(cases)[0])
    facts = [float(check(case.criterion, case.item, case.text)) for case in cases]
    rows: dict[str, list[float]] = {"judged": [], "exact": [], "essentials": []}
    parts: dict[str, float] = {}
    at = 0
    for item, _ in texts:
        criteria = rubric(item)
        said, true = (all_[at : at + len(criteria)] for all_ in (credits, facts))
        at += len(criteria)
        rows["judged"].append(weighted_sum(criteria, said))
        rows["exact"].append(weighted_sum(criteria, true))
        lacking = [
            fact < 1
            for criterion, fact in zip(criteria, true, strict=True)
            if criterion.importance is Importance.ESSENTIAL
        ]
        rows["essentials"].append(float(not any(lacking)))
        most = sum(max(WEIGHTS[criterion.importance], 0.0) for criterion in criteria)
        for criterion, credit, fact in zip(criteria, said, true, strict=True):
            part = WEIGHTS[criterion.importance] * (credit - fact) / most / len(texts)
            name = subject(criterion)
            parts[name] = parts.get(name, 0.0) + part
    means = {name: _means(row, groups) for name, row in rows.items()}
    shares, met = agreement_shares(credits, facts), by_subject(cases, facts)
    return Judged(**means, shares=shares, met=met, parts=parts)


def watched(reward: Reward, rater: Rater) -> Reward:
    """`reward`, which also says how good the texts are that it pays for: `judged`, the mean of what
    it says itself; `exact`, the weighted sum of exact credits whatever the reward's aggregate is;
    where it is known `gold`; and `judge_tokens`, those that it scored."""

    def rewards(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        rewards_P_G, metrics = reward(batch_P, groups_P_G)
        pairs = zip(batch_P, groups_P_G, strict=True)
        texts = [(item, rollout.text) for item, group in pairs for rollout in group]
        exact = [_exact(item, text) for item, text in texts]
        metrics = metrics | {
            "judged": rewards_P_G.mean().item(),
            "judge_tokens": metrics.get("scored_tokens", 0.0),
            "exact": float(np.mean(exact)),
        }
        if rater.gold is not None:
            metrics["gold"] = float(np.mean([rater.gold(item, text) for item, text in texts]))
        return rewards_P_G, metrics

    return rewards


def on_judged_texts(trained: Trained, world: World) -> Measured:
    """What `posttrain.lab.texts.on_texts` measures, and what `Judged` says: `judged`, `exact`,
    `essentials`, `overpaid`, the judge's `agreement`, `false_credit` and `false_denial`
    on these texts, and by subject `met/mood` and `overpaid/mood`.

    Raises:
        ValueError: the arm did not say whom its policy is compared with, by whom, or who judges.
    """
    reference, rater, judge = trained.reference, trained.rater, trained.judge
    if reference is None or rater is None or judge is None:
        raise ValueError("an arm has to return a reference, a rater and a judge of criteria too")
    sample = partial(
        sample_answers, items=world.test, answers=world.k, max_tokens=world.max_tokens, seed=0
    )
    ours, theirs = sample(trained.stage.sampler), sample(reference)
    score = score_texts(reference, world.test, ours, theirs, rater)
    found = judge_texts(judge, world.test, ours)
    values = {
        "test/judged": found.judged,
        "test/exact": found.exact,
        "test/overpaid": found.overpaid,
        "test/essentials": found.essentials,
        "test/win_rate": score.won.wins,
    }
    if score.golds is not None:
        values["test/gold"] = score.golds
    metrics = {name: float(each.mean()) for name, each in values.items()}
    metrics |= {f"test/{name}": share for name, share in found.shares.items()}
    metrics |= {
        "test/tokens": score.length.value,
        "test/kl": score.won.kl,
        "test/well_formed": score.well_formed,
        **{f"met/{name}": value for name, value in found.met.items()},
        **{f"overpaid/{name}": value for name, value in found.parts.items()},
    }
    items = {name: each.tolist() for name, each in values.items()}
    return Measured(metrics, items, f"{found}  {score}")


def _exact(item: Item, text: str) -> float:
    criteria = rubric(item)
    return weighted_sum(criteria, [float(check(c, item, text)) for c in criteria])


def _means(values: Sequence[float], groups: Sequence[Sequence[Rollout]]) -> Array:
    """(I,) mean of each group's values, which are in the order of the groups."""
    left = iter(values)
    return np.array([np.mean([next(left) for _ in group]) for group in groups])

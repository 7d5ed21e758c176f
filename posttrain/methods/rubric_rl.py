"""Rubric RL: pay an answer for the criteria that a judge says it meets.

An item comes with a rubric, statements about a good answer, each essential or important, or a
pitfall, which is better false (`posttrain.tasks.rubrics`). A judge gives each statement a credit
c_j in [0, 1], how true it is of the answer, and an aggregate makes a reward of the credits; usually

    r(x, y) = sum_j w_j c_j / sum_j max(w_j, 0),   w_j < 0 for pitfalls

(Rubrics as Rewards, Gunjal et al. 2025, arXiv:2507.17746, eq. 1, all of whose w_j are positive).
`rubric_reward` is a reward of `posttrain.methods.rlvr.train`, whose loop this method shares:

    judge = language_judge(sampler)
    rlvr.train(policy, items, cfg, reward=rubric_reward(judge, weighted_sum))

A language model as the judge (`posttrain.methods.rubric_judges`) reads carelessly, and the policy
finds out where (arXiv:2605.12474). So the reward can measure the judge against an exact check while
it trains, and let a program answer for some criteria.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tinker
import torch
from torch import Tensor

from posttrain.methods.rlvr import Reward
from posttrain.methods.rubric_judges import (
    ANSWERS,
    Ask,
    Case,
    Check,
    Judge,
    agreement_shares,
    by_subject,
    settled,
)
from posttrain.rollouts import Rollout
from posttrain.tasks.criteria import Kind
from posttrain.tasks.problem import Item
from posttrain.tasks.rubrics import Criterion, Importance, check, rubric
from posttrain.verdicts import verdicts

Exact = Callable[[Criterion, Item, str], float | None]  # a `Check`; None where the judge is to say
Aggregate = Callable[[Sequence[Criterion], Sequence[float]], float]  # of one text to its reward


def exact_of(*kinds: Kind) -> Exact:
    """The remedy: criteria all of whose conditions are of these kinds are checked by a program.

    Raises:
        ValueError: no kind was given.
    """
    if not kinds:
        raise ValueError("no kind of condition was given: then a judge says everything")

    def exact(criterion: Criterion, item: Item, text: str) -> float | None:
        if any(condition.kind not in kinds for condition in criterion.conditions):
            return None
        return float(check(criterion, item, text))

    return exact


# The paper's 1.0, 0.7 and 0.9. It words a pitfall as something avoided; here it is something done,
# so it counts against the text.
WEIGHTS = {
    Importance.ESSENTIAL: 1.0,
    Importance.IMPORTANT: 0.7,
    Importance.PITFALL: -0.9,
}


def weighted_sum(criteria: Sequence[Criterion], credits_J: Sequence[float]) -> float:
    """sum_j w_j c_j / sum_j max(w_j, 0): 1 for a text with every merit and no pitfall.

    Below 0 where pitfalls outweigh merits; not cut off there, so that bad texts differ too.

    Raises:
        ValueError: no criterion has merit.
    """
    weights_J = [WEIGHTS[criterion.importance] for criterion in criteria]
    most = sum(weight for weight in weights_J if weight > 0)
    if most == 0:
        raise ValueError(f"a rubric of {len(criteria)} criteria needs one that is not a pitfall")
    return sum(w * c for w, c in zip(weights_J, credits_J, strict=True)) / most


def essential_gate(criteria: Sequence[Criterion], credits_J: Sequence[float]) -> float:
    """`weighted_sum`, at least 0, times the credits of all essential criteria: a text that lacks
    one of them earns nothing, and no text earns less. Raises as `weighted_sum`."""
    open_by = 1.0
    for criterion, credit in zip(criteria, credits_J, strict=True):
        if criterion.importance is Importance.ESSENTIAL:
            open_by *= credit
    return open_by * max(weighted_sum(criteria, credits_J), 0.0)


def binary(aggregate: Aggregate) -> Aggregate:
    """`aggregate` of credits rounded to 0 or 1, as a judge gives them who only says yes or no."""

    def rounded(criteria: Sequence[Criterion], credits_J: Sequence[float]) -> float:
        return aggregate(criteria, [float(credit >= 0.5) for credit in credits_J])

    return rounded


def rubric_reward(
    judge: Judge,
    aggregate: Aggregate = weighted_sum,
    *,
    exact: Exact | None = None,
    truth: Check | None = None,
) -> Reward:
    """Criterion by criterion; one call of the judge for a whole batch.

    Its metrics: `unreadable`, the share of cases that the judge did not answer; `scored_tokens`;
    `paid/mood` and the like, how far criteria of a subject are held to be met. With `truth`, which
    is only measured: `true/mood` and the like, how far they are; `true_reward`, what exact credits
    would have paid; and `agreement`, `false_credit` and `false_denial` over the judge's cases, as
    in `Agreement`.

    Args:
        exact: a program that answers for some criteria in the judge's place.
        truth: the exact check, `rubrics.check`.
    """

    def rewards(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        cases = [
            Case(item, criterion, rollout.text)
            for item, group in zip(batch_P, groups_P_G, strict=True)
            for rollout in group
            for criterion in rubric(item)
        ]
        known = [exact(c.criterion, c.item, c.text) if exact else None for c in cases]
        asked = [case for case, credit in zip(cases, known, strict=True) if credit is None]
        said, scored = judge(asked)
        told = iter(said)
        final = settled(cases, [next(told) if credit is None else credit for credit in known])
        rewards_P_G = _aggregated(aggregate, batch_P, groups_P_G, final)
        metrics = {
            "unreadable": sum(credit is None for credit in said) / max(len(said), 1),
            "scored_tokens": float(scored),
            **{f"paid/{name}": value for name, value in by_subject(cases, final).items()},
        }
        if truth is not None:
            facts = [float(truth(c.criterion, c.item, c.text)) for c in cases]
            true_P_G = _aggregated(aggregate, batch_P, groups_P_G, facts)
            metrics["true_reward"] = true_P_G.mean().item()
            metrics |= {f"true/{name}": value for name, value in by_subject(cases, facts).items()}
            judged = [i for i, credit in enumerate(known) if credit is None]
            metrics |= agreement_shares([final[i] for i in judged], [facts[i] for i in judged])
        return rewards_P_G, metrics

    return rewards


def holistic_prompt(item: Item, text: str) -> str:
    """The whole rubric in one question, on one line."""
    criteria = [
        f"not that {c.text}" if c.importance is Importance.PITFALL else c.text for c in rubric(item)
    ]
    told = " ".join(text.split())
    return f"Request: {item.question} Text: {told} Wanted: {', '.join(criteria)}. Is it good?"


def holistic_reward(model: tinker.SamplingClient, ask: Ask = str) -> Reward:
    """One question about all criteria together, paid by P("yes"): what the paper calls implicit
    aggregation. An unreadable verdict is 0. Arguments as in `language_judge`; its metrics are
    `unreadable` and `scored_tokens`.
    """

    def rewards(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        pairs = zip(batch_P, groups_P_G, strict=True)
        texts = [ask(holistic_prompt(item, r.text)) for item, group in pairs for r in group]
        found, scored = verdicts(model, texts, ANSWERS)
        paid = torch.tensor([v.probability if v.readable else 0.0 for v in found])
        return paid.view(len(groups_P_G), -1), {
            "unreadable": sum(not v.readable for v in found) / len(found),
            "scored_tokens": float(scored),
        }

    return rewards


def _aggregated(
    aggregate: Aggregate,
    batch_P: Sequence[Any],
    groups_P_G: Sequence[Sequence[Rollout]],
    credits: Sequence[float],
) -> Tensor:
    """(P, G) rewards of credits that are in the order of items, rollouts and criteria."""
    left = iter(credits)
    rows = []
    for item, group in zip(batch_P, groups_P_G, strict=True):
        criteria = rubric(item)
        rows.append([aggregate(criteria, [next(left) for _ in criteria]) for _ in group])
    return torch.tensor(rows)

"""How often a judge prefers a policy's answers to the reference's, and what length has to do
with it.

Shapes: I items, G answers of each policy to each item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker
from numpy.typing import NDArray

from posttrain.datums import same_tokenizer
from posttrain.rollouts import Rollout, kl_from, sample_answers
from posttrain.stats import Estimate, bootstrap_mean, fields_to_json
from posttrain.tasks.problem import Item

# (item, a, b) to the probability that a is preferred to b, or 1, 0.5, 0: win, tie, loss. None where
# the judge says something else: that counts as a tie.
Judge = Callable[[Any, str, str], float | None]

ASKED_AT_ONCE = 32  # pairs; a judge that is a model answers over a network


@dataclass(frozen=True, eq=False)
class WinRate:
    """A policy against a reference on the same items; intervals from resampling items."""

    n: int  # items
    answers: int  # of each policy to each item; the g-th of one meets the g-th of the other
    win_rate: Estimate  # the judge's mean verdict for the policy, over both orders of a pair
    near_win_rate: Estimate | None  # the same among pairs of near-equal length; None without any
    near_pairs: int  # of the n * answers pairs, those
    length_difference: Estimate  # policy minus reference, tokens per answer
    first_preferred: float  # mean verdict for the answer shown first; 0.5 is an unbiased judge
    unreadable: int  # of the 2 * n * answers verdicts, those that the judge did not give: ties
    truncated: int  # answers of the policy that were cut off at max_tokens, judged as they are
    reference_truncated: int  # the same of the reference
    kl: float  # KL(policy || reference), nats per answer, on the policy's samples
    sampled_tokens: int  # by both, for the ledger
    scored_tokens: int  # by the reference for `kl`, for the ledger
    wins: NDArray[np.float64]  # (n,) mean verdict per item, for paired comparisons

    def __str__(self) -> str:
        near = "none" if self.near_win_rate is None else str(self.near_win_rate)
        lost = f"  {self.unreadable} verdicts unreadable" if self.unreadable else ""
        return (
            f"win rate {self.win_rate}  at near-equal length {near} ({self.near_pairs} pairs)  "
            f"length {self.length_difference.value:+.1f} tokens  KL {self.kl:.2f} (n={self.n})"
            f"{lost}"
        )

    def to_json(self) -> dict[str, Any]:
        """Every field under its name; estimates as their dictionaries, arrays as lists."""
        return fields_to_json(self)


def win_rate(
    policy: tinker.SamplingClient,
    reference: tinker.SamplingClient,
    items: Sequence[Item],
    judge: Judge,
    *,
    answers: int = 1,
    max_tokens: int,
    seed: int = 0,
    near: float = 0.1,
) -> WinRate:
    """Sample both at temperature 1 with the same seeds, and let `judge` compare.

    Every pair is shown in both orders and the verdicts averaged, because judges that are language
    models like the first or the second place. Judges also like length (arXiv:2404.04475): a policy
    that wins overall, but not among pairs of near-equal length, has learned to write more.

    Args:
        answers: G, of each policy to each item.
        max_tokens: of an answer.
        near: two lengths are near-equal if they differ by at most this share of the longer one.

    Raises:
        ValueError: there is no item, `answers` is below 1, the two have different tokenizers, or a
            verdict is not within 0 and 1.
    """
    if not items or answers < 1:
        raise ValueError(
            f"nothing to compare: {len(items)} items, answers={answers}; both need >= 1"
        )
    same_tokenizer(policy.get_tokenizer(), reference.get_tokenizer())  # for their KL
    ours, theirs = (
        sample_answers(sampler, items, answers, max_tokens=max_tokens, seed=seed)
        for sampler in (policy, reference)
    )
    return compare_answers(reference, items, ours, theirs, judge, seed=seed, near=near)


def compare_answers(
    reference: tinker.SamplingClient,
    items: Sequence[Item],
    ours: Sequence[Sequence[Rollout]],
    theirs: Sequence[Sequence[Rollout]],
    judge: Judge,
    *,
    seed: int = 0,
    near: float = 0.1,
) -> WinRate:
    """`win_rate` on answers that have been sampled: `ours` by the policy, `theirs` by `reference`.

    Args:
        seed: of the bootstraps.

    Raises:
        ValueError: a verdict is not within 0 and 1.
    """
    pairs = [
        (item, a.text, b.text)
        for item, mine, other in zip(items, ours, theirs, strict=True)
        for a, b in zip(mine, other, strict=True)
    ]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        shown = list(pool.map(lambda pair: _both_orders(judge, *pair), pairs))
    verdicts_I_G_2 = np.array(shown, dtype=np.float64).reshape(len(items), -1, 2)
    unreadable = np.isnan(verdicts_I_G_2)
    verdicts_I_G_2[unreadable] = 0.5
    wins_I_G = (verdicts_I_G_2[..., 0] + 1 - verdicts_I_G_2[..., 1]) / 2
    ours_I_G, theirs_I_G = _lengths(ours), _lengths(theirs)
    near_I_G = np.abs(ours_I_G - theirs_I_G) <= near * np.maximum(ours_I_G, theirs_I_G)
    rollouts = [rollout for group in ours for rollout in group]
    return WinRate(
        n=len(items),
        answers=wins_I_G.shape[1],
        win_rate=bootstrap_mean(wins_I_G, seed),
        near_win_rate=_mean_where(wins_I_G, near_I_G, seed),
        near_pairs=int(near_I_G.sum()),
        length_difference=bootstrap_mean(ours_I_G - theirs_I_G, seed),
        first_preferred=float(verdicts_I_G_2.mean()),
        unreadable=int(unreadable.sum()),
        truncated=sum(not r.finished for r in rollouts),
        reference_truncated=sum(not r.finished for group in theirs for r in group),
        kl=kl_from(reference, rollouts),
        sampled_tokens=int(ours_I_G.sum() + theirs_I_G.sum()),
        scored_tokens=sum(len(r.prompt) + len(r.tokens) for r in rollouts),
        wins=wins_I_G.mean(axis=1),
    )


def _both_orders(judge: Judge, item: Item, a: str, b: str) -> tuple[float, float]:
    """The verdict for a when shown first, and the verdict for b when shown first; NaN for None."""
    told = judge(item, a, b), judge(item, b, a)
    if not all(verdict is None or 0 <= verdict <= 1 for verdict in told):
        raise ValueError(f"a judge's verdict is between 0 and 1, got {told} for {item.key!r}")
    first, second = (np.nan if verdict is None else float(verdict) for verdict in told)
    return first, second


def _lengths(groups: Sequence[Sequence[Rollout]]) -> NDArray[np.float64]:
    """(I, G): tokens of each answer, the end-of-sequence token included."""
    return np.array([[len(r.tokens) for r in group] for group in groups], dtype=np.float64)


def _mean_where(
    values_I_G: NDArray[np.float64], where_I_G: NDArray[np.bool_], seed: int
) -> Estimate | None:
    """Mean of each item's marked values, over the items that have one; None if none has."""
    counts = where_I_G.sum(axis=1)
    some = counts > 0
    if not some.any():
        return None
    return bootstrap_mean((values_I_G * where_I_G).sum(axis=1)[some] / counts[some], seed)

"""A reward model: learn from pairs of answers which one people like better.

Minimise the mean over pairs of

    L = - log sigmoid(h),  h = r(x, y_w) - r(x, y_l)

(Bradley & Terry 1952; for language models Christiano et al. 2017, arXiv:1706.03741, and Stiennon
et al. 2020, arXiv:2009.01325, section 3.4). The API has no scalar heads, so the reward is read from
a language model: asked whether an answer is good,

    r(x, y) = log p("yes" | x, y) - log p("no" | x, y),

both at the one token where the two answers part (`posttrain.verdicts`).

A form is a way to ask. `GOOD` asks about one answer at a time, and its gap is a reward. `BETTER`
shows both answers and asks which is better, which gives a preference but no reward; it is asked in
both orders, h being half the difference of the two gaps, so a liking for the first or the second
place cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tinker
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.datums import batch_indices
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks.problem import Item, Preference
from posttrain.verdicts import question, verdict_datum, verdicts
from posttrain.win_rate import Judge


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3  # at the first step; falls linearly to zero
    batch_size: int = 32  # pairs a step; both texts of a pair are always in the same batch
    steps: int = 100
    seed: int = 0  # order of the pairs


@dataclass(frozen=True)
class Form:
    """How a model is asked about a pair, so that h = scale * (gap of `win` - gap of `lose`)."""

    answers: tuple[str, str]  # the gap is log p of the first minus log p of the second
    win: Callable[[str, str, str], str]  # (question, chosen, rejected) to the text asked about
    lose: Callable[[str, str, str], str]
    scale: float


def good_prompt(asked: str, answer: str) -> str:
    """What is asked about one answer, on one line."""
    return f"Request: {asked} Text: {_line(answer)} Is it good?"


def better_prompt(asked: str, first: str, second: str) -> str:
    """What is asked about two answers, on one line."""
    return f"Request: {asked} First: {_line(first)} Second: {_line(second)} Which is better?"


GOOD = Form(
    answers=("yes", "no"),
    win=lambda asked, chosen, rejected: good_prompt(asked, chosen),
    lose=lambda asked, chosen, rejected: good_prompt(asked, rejected),
    scale=1.0,
)
BETTER = Form(
    answers=("first", "second"),
    win=better_prompt,
    lose=lambda asked, chosen, rejected: better_prompt(asked, rejected, chosen),
    scale=0.5,
)

Loss = Callable[[Tensor, Tensor], Tensor]  # scores of `win` and of `lose`, (B,) each, to a scalar


def bradley_terry(win_B: Tensor, lose_B: Tensor) -> Tensor:
    """-log sigmoid(win - lose), the mean over pairs; log 2 where all scores are equal."""
    return -logsigmoid(win_B - lose_B).mean()


def bradley_terry_centred(win_B: Tensor, lose_B: Tensor, weight: float = 0.01) -> Tensor:
    """Bradley-Terry plus weight (r_w + r_l)^2, the mean over pairs (Eisenstein et al. 2023,
    arXiv:2312.09244): pairs say nothing about the level of the rewards, and this keeps it near 0.
    """
    return bradley_terry(win_B, lose_B) + weight * (win_B + lose_B).square().mean()


@dataclass(frozen=True)
class Pair:
    """The two texts of one preference as datums of `posttrain.verdicts.verdict_datum`."""

    win: tinker.Datum
    lose: tinker.Datum

    @property
    def tokens(self) -> int:
        """Positions of both: what a forward pass computes."""
        return self.win.model_input.length + self.lose.model_input.length


def reward_pairs(
    tokenizer: Any, preferences: Sequence[Preference], form: Form = GOOD, *, max_tokens: int
) -> list[Pair]:
    """Preferences as a model is asked about them.

    Args:
        max_tokens: of a text with its question. Longer ones are refused, never cut.

    Raises:
        ValueError: there is no preference; one is too long; its two answers are equal.
    """
    if not preferences:
        raise ValueError("there is nothing to train on: no preferences were given")
    pairs = []
    for i, shown in enumerate(preferences):
        where = f"preference {i} ({shown.question[:60]!r})"
        texts = _texts(form, shown)
        if texts[0] == texts[1]:
            raise ValueError(f"{where}: chosen and rejected are the same text; leave it out")
        win, lose = (question(tokenizer, text, form.answers) for text in texts)
        longest = max(len(win.prompt), len(lose.prompt))
        if longest > max_tokens:
            raise ValueError(
                f"{where} has {longest} tokens, more than max_tokens={max_tokens}: leave it out, "
                "or allow more if the model's context does"
            )
        pairs.append(Pair(verdict_datum(win), verdict_datum(lose)))
    return pairs


def train(
    model: tinker.TrainingClient,
    pairs: Sequence[Pair],
    cfg: Config,
    *,
    form: Form = GOOD,
    loss: Loss = bradley_terry,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on. `form` is that of the pairs.

    Yields:
        loss: mean over the batch's pairs, nats, before the step;
        accuracy: share of pairs with h > 0; a tie counts half;
        margin: mean h, nats;
        level: mean of the gaps. Of GOOD, how high rewards are; of BETTER, the liking for the first
            place;
        tokens: that went through forward and backward;
        scored_tokens: through forward alone: a custom loss needs a pass of its own.
    """
    for step in range(start, cfg.steps):
        batch = batch_indices(len(pairs), cfg.batch_size, cfg.seed, step)
        batch_B = [pairs[i] for i in batch]
        data_D = [datum for pair in batch_B for datum in (pair.win, pair.lose)]
        rate = cfg.learning_rate * (1 - step / cfg.steps)
        backward = model.forward_backward_custom(data_D, partial(batch_loss, loss, form.scale))
        update = model.optim_step(tinker.AdamParams(learning_rate=rate))
        metrics = backward.result().metrics
        update.result()
        tokens = float(sum(pair.tokens for pair in batch_B))
        yield {
            "loss": metrics.pop("loss:sum"),
            **{name: metrics[name] for name in ("accuracy", "margin", "level")},
            "learning_rate": rate,
            "tokens": tokens,
            "scored_tokens": tokens,
        }


def batch_loss(
    loss: Loss, scale: float, data_D: Sequence[tinker.Datum], logprobs_D: Sequence[Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """What `forward_backward_custom` calls. `logprobs_D[i]` is (T, 2), of which the last row is
    that of the two answers; the data are win, lose, win, ... of the pairs in order."""
    gaps_D = torch.stack([(logprobs[-1, 0] - logprobs[-1, 1]).double() for logprobs in logprobs_D])
    win_B, lose_B = scale * gaps_D[0::2], scale * gaps_D[1::2]
    h = (win_B - lose_B).detach()
    return loss(win_B, lose_B), {
        "accuracy": torch.where(h == 0, 0.5, (h > 0).double()).mean().item(),
        "margin": h.mean().item(),
        "level": gaps_D.detach().mean().item(),
    }


@dataclass(frozen=True)
class Fidelity:
    """How well a model predicts preferences that it was not trained on.

    Labels are noisy, so the best possible accuracy is below 1: simulated people agree with their
    own taste on about 86 % of random pairs.
    """

    pairs: int
    accuracy: Estimate  # share of pairs with h > 0, a tie half; questions count alike
    loss: float  # mean -log sigmoid(h), nats; log 2 knows nothing
    calibration_error: float  # mean |accuracy - confidence| over ten bins of confidence, weighed
    level: float  # mean gap, nats: as in `train`
    unreadable: int  # of the 2 * pairs verdicts; they are used all the same
    scored_tokens: int  # for the ledger


def fidelity(
    model: tinker.SamplingClient, preferences: Sequence[Preference], form: Form = GOOD
) -> Fidelity:
    """Predict held-out preferences. The interval comes from resampling questions, because the
    pairs of one question share their answers.

    Raises:
        ValueError: there is no preference.
    """
    if not preferences:
        raise ValueError("there is nothing to predict: no preferences were given")
    texts = [text for shown in preferences for text in _texts(form, shown)]
    found, scored = verdicts(model, texts, form.answers)
    gaps = np.array([verdict.gap for verdict in found])
    h = form.scale * (gaps[0::2] - gaps[1::2])
    right = np.where(h == 0, 0.5, h > 0)
    of_question: dict[str, list[float]] = {}
    for shown, value in zip(preferences, right.tolist(), strict=True):
        of_question.setdefault(shown.question, []).append(value)
    return Fidelity(
        pairs=len(preferences),
        accuracy=bootstrap_mean([sum(v) / len(v) for v in of_question.values()]),
        loss=float(np.logaddexp(0, -h).mean()),
        calibration_error=calibration_error(h, right),
        level=float(gaps.mean()),
        unreadable=sum(not verdict.readable for verdict in found),
        scored_tokens=scored,
    )


def calibration_error(h: Any, right: Any, bins: int = 10) -> float:
    """Expected calibration error of predicted preferences (Guo et al. 2017, arXiv:1706.04599,
    eq. 3): sum over bins of |mean right - mean confidence| times the bin's share of pairs.

    Args:
        h: (B,) nats for the chosen answer. The confidence is sigmoid(|h|), within 1/2 and 1.
        right: (B,) 1 where h > 0, 1/2 where it is 0, else 0.
        bins: of equal width between 1/2 and 1.
    """
    confidence = 1 / (1 + np.exp(-np.abs(h)))
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = np.bincount(which, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def pairwise_judge(model: tinker.SamplingClient) -> Judge:
    """A judge for `posttrain.win_rate`: P(the first of two answers is better), as `BETTER` asks.

    One order at a time: `win_rate` shows both, and tells how much the first place is liked.
    """

    def judge(item: Item, a: str, b: str) -> float:
        (verdict,), _ = verdicts(model, [better_prompt(item.question, a, b)], BETTER.answers)
        return verdict.probability

    return judge


def _texts(form: Form, shown: Preference) -> tuple[str, str]:
    told = (shown.question, shown.chosen, shown.rejected)
    return form.win(*told), form.lose(*told)


def _line(text: str) -> str:
    return " ".join(text.split())

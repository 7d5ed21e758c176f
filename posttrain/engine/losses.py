"""The losses of the Tinker API, as pure functions of per-token tensors.

Every function maps log-probabilities of the targets under the policy, and the other inputs of
the loss, all of one shape `(B, T, K)` (K = 1 except for soft targets), to the loss of each cell.
The total is the SUM of all cells: nothing is averaged. Padding has zero weight and advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Inputs = Mapping[str, Tensor]
Settings = Mapping[str, float]


def cross_entropy(logprobs: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """-log p(x), weighted by the caller. With K targets a position: soft distillation."""
    return -logprobs


def importance_sampling(logprobs: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """-p(x) / q(x) * A, the policy gradient corrected for the sampler's distribution q."""
    return -(logprobs - inputs["logprobs"]).exp() * inputs["advantages"]


def ppo(logprobs: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """-min(r A, clip(r, low, high) A) (Schulman et al. 2017, arXiv:1707.06347, eq. 7)."""
    return clipped((logprobs - inputs["logprobs"]).exp(), inputs["advantages"], settings)


def cispo(logprobs: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """-sg(clip(r, low, high)) log p(x) A (MiniMax 2025, arXiv:2506.13585, eq. 4)."""
    ratio = (logprobs.detach() - inputs["logprobs"]).exp()
    low, high = settings["clip_low_threshold"], settings["clip_high_threshold"]
    return -ratio.clamp(low, high) * logprobs * inputs["advantages"]


def dro(logprobs: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """-(log p(x) A - beta / 2 * (log p(x) - log q(x))^2) (Richemond et al. 2024, 2405.19107)."""
    gap = logprobs - inputs["logprobs"]
    return 0.5 * settings["beta"] * gap.square() - logprobs * inputs["advantages"]


def gspo(logprobs: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """PPO's loss on the sequence's mean ratio (Zheng et al. 2025, arXiv:2507.18071, eq. 7).

    s = exp(mean over the mask of log p - log q); each token's ratio has the value s and the
    gradient of its own log-probability.
    """
    mask = inputs["sequence_ratio_mask"]
    gap = (logprobs.detach() - inputs["logprobs"]) * mask
    log_ratio = gap.sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp(min=1.0)
    ratio = (log_ratio + logprobs - logprobs.detach()).exp()
    return clipped(ratio, inputs["advantages"], settings)


def clipped(ratio: Tensor, advantages: Tensor, settings: Settings) -> Tensor:
    """PPO's pessimistic bound for a given ratio."""
    clip = ratio.clamp(settings["clip_low_threshold"], settings["clip_high_threshold"])
    return -(ratio * advantages).minimum(clip * advantages)


@dataclass(frozen=True)
class Loss:
    """A loss function and what a request for it must and may contain.

    Attributes:
        inputs: names every datum must bring besides `target_tokens`. All losses also take
            `weights`, by which each cell is multiplied; absent means 1.
        settings: keys of `loss_fn_config` with their defaults; None means no default.
        silent: the input where a zero makes a position's gradient zero, so that the backward
            pass may leave it out.
    """

    function: Callable[[Tensor, Inputs, Settings], Tensor]
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, float | None] = field(default_factory=dict)
    silent: str | None = None


POLICY = ("logprobs", "advantages")
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy),
    "importance_sampling": Loss(importance_sampling, POLICY, silent="advantages"),
    "ppo": Loss(
        ppo,
        POLICY,
        {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        silent="advantages",
    ),
    "cispo": Loss(
        cispo,
        POLICY,
        {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
        silent="advantages",
    ),
    "dro": Loss(dro, POLICY, {"beta": None}),
    "gspo": Loss(
        gspo,
        (*POLICY, "sequence_ratio_mask"),
        {"clip_low_threshold": 1 - 3e-4, "clip_high_threshold": 1 + 4e-4},
        silent="advantages",
    ),
}

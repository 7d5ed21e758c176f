"""Advantages of a group of completions that answer the same prompt: `(P, G)` to `(P, G)`.

P prompts, G completions of each. The group's own mean is the baseline, so no value model is
needed; a group whose rewards are all equal has no contrast and gets zero.
"""

from __future__ import annotations

from torch import Tensor


def centred(rewards_P_G: Tensor) -> Tensor:
    """r - mean(r): the policy gradient with a group baseline (Dr. GRPO, arXiv:2503.20783)."""
    return rewards_P_G - rewards_P_G.mean(1, keepdim=True)


def standardised(rewards_P_G: Tensor, eps: float = 1e-6) -> Tensor:
    """(r - mean(r)) / (std(r) + eps): GRPO (arXiv:2402.03300, eq. 3 with outcome rewards).

    The division gives rare successes and rare failures a larger step than an even split.
    """
    return centred(rewards_P_G) / (rewards_P_G.std(1, correction=0, keepdim=True) + eps)


def without_contrast(rewards_P_G: Tensor) -> float:
    """Share of groups whose rewards are all equal, from which nothing can be learned."""
    return (rewards_P_G.amax(1) == rewards_P_G.amin(1)).float().mean().item()

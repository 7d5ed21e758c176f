"""Advantages of a group of completions that answer the same prompt: `(P, G)` to `(P, G)`; and
how much a token of each completion counts: lengths `(P, G)` to weights `(P, G)`.

P prompts, G completions of each. The group's own mean is the baseline, so no value model is
needed; a group whose rewards are all equal has no contrast and gets zero from all of them. A group
of one could have no other: that is a ValueError.

Dr. GRPO (arXiv:2503.20783) is GRPO without two divisions, one in each half of this file: by the
standard deviation (`centred`) and by the completion's own length (`seq_mean_token_sum`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred(rewards_P_G: Tensor) -> Tensor:
    """r - mean(r): the policy gradient with a group baseline (Dr. GRPO, arXiv:2503.20783).

    The baseline contains the completion's own reward, which shrinks the gradient to (G-1)/G.

    Raises:
        ValueError: G = 1, here and in all functions built on this one.
    """
    if rewards_P_G.shape[1] < 2:
        raise ValueError("a group of one has nothing to be compared with: group_size must be >= 2")
    return rewards_P_G - rewards_P_G.mean(1, keepdim=True)


def standardised(rewards_P_G: Tensor, eps: float = 1e-6) -> Tensor:
    """(r - mean(r)) / (std(r) + eps): GRPO (arXiv:2402.03300, eq. 3 with outcome rewards).

    The division gives rare successes and rare failures a larger step than an even split.
    """
    return centred(rewards_P_G) / (rewards_P_G.std(1, correction=0, keepdim=True) + eps)


def batch_standardised(rewards_P_G: Tensor, eps: float = 1e-6) -> Tensor:
    """(r - mean(r)) / (std of r - mean(r) over the whole batch + eps): the mean of the group, the
    scale of the batch (Lite PPO, arXiv:2508.08221). Problems keep their relative weights."""
    advantages_P_G = centred(rewards_P_G)
    return advantages_P_G / (advantages_P_G.std(correction=0) + eps)


def rloo(rewards_P_G: Tensor) -> Tensor:
    """r_i - mean of the others' r = G/(G-1) (r_i - mean(r)): REINFORCE leave-one-out
    (arXiv:2402.14740, eq. 8). The gradient is unbiased: no reward is in its own baseline."""
    size = rewards_P_G.shape[1]
    return centred(rewards_P_G) * (size / (size - 1))


def maxrl(rewards_P_G: Tensor) -> Tensor:
    """(r - mean(r)) / mean(r), and 0 where the mean is 0: MaxRL (arXiv:2602.02710).

    For rewards of 0 and 1, with p the probability of success, its expected gradient is that of
    sum_{k=1}^{G-1} pass@k / k, whose limit is log p, the log-likelihood of success. Rare successes
    count for more, as with GRPO, rare failures not.

    Raises:
        ValueError: a reward is negative.
    """
    if (rewards_P_G < 0).any():
        raise ValueError("MaxRL divides by the mean reward, so no reward may be negative")
    mean_P_1 = rewards_P_G.mean(1, keepdim=True)
    return centred(rewards_P_G) / torch.where(mean_P_1 > 0, mean_P_1, 1.0)


def without_contrast(rewards_P_G: Tensor) -> float:
    """Share of groups whose rewards are all equal, from which nothing can be learned."""
    return 1.0 - contrast(rewards_P_G).float().mean().item()


def contrast(rewards_P_G: Tensor) -> Tensor:
    """(P,) which groups have rewards that are not all equal."""
    return rewards_P_G.amax(1) != rewards_P_G.amin(1)


def seq_mean_token_sum(lengths_P_G: Tensor) -> Tensor:
    """1 / N for N completions: each adds up its tokens, and the policy gradient is unbiased.

    Dr. GRPO (arXiv:2503.20783) divides further, by the longest possible length: a constant, which
    belongs to the learning rate here.
    """
    return torch.full(lengths_P_G.shape, 1 / lengths_P_G.numel())


def seq_mean_token_mean(lengths_P_G: Tensor) -> Tensor:
    """1 / (N |y|): each completion counts the same, whatever its length (GRPO, arXiv:2402.03300).

    So a long wrong answer is punished less for each of its tokens, and wrong answers grow. It is
    also the weight of GSPO (arXiv:2507.18071), whose ratio is a mean over tokens.
    """
    return 1 / (lengths_P_G.numel() * lengths_P_G)


def batch_token_mean(lengths_P_G: Tensor) -> Tensor:
    """1 / sum of all |y|: each token of the batch counts the same (DAPO, arXiv:2503.14476)."""
    return torch.full(lengths_P_G.shape, 1 / lengths_P_G.sum().item())

"""How far apart two distributions over the next token are: p of the policy, q of a teacher.

Every function is named by its formula and takes the policy first. `p` and `q` are
log-probabilities in nats whose last axis runs over the same V outcomes, `(..., V)`; the result is
`(...)`, in nats. It is never negative, and zero only where p = q.

A server returns at most K log-probabilities of a position, never all. `with_tail` makes K + 1
outcomes of them, `renormalised` K; what either does to a divergence stands there. From samples
of p alone there are `k1` and `k3`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# (policy, teacher), both (..., V) log-probabilities, to (...) nats.
Divergence = Callable[[Tensor, Tensor], Tensor]

TAIL = 1e-6  # the least mass of a tail: below it, rounding of a sum in float32 is all there is


def kl_p_q(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), called reverse where q is the teacher.

    It is large where the policy goes and the teacher does not; what the teacher does besides
    costs nothing. An outcome that only the teacher excludes makes it infinite.
    """
    return _mean_gap(p, p, q)


def kl_q_p(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p) = sum_v q_v (log q_v - log p_v), called forward where q is the teacher.

    It is large where the teacher goes and the policy does not. As a function of p it is
    cross-entropy with the targets q, less the entropy of q (Hinton et al. 2015,
    arXiv:1503.02531, at temperature 1).
    """
    return _mean_gap(q, q, p)


def jsd(p: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p.

    The generalised Jensen-Shannon divergence (Agarwal et al. 2023, arXiv:2306.13649, eq. 1), at
    most log 2. It vanishes as beta goes to 0 or 1; divided by beta it goes to KL(q || p), and by
    1 - beta to KL(p || q). Libraries that accept 0 and 1 mean those two, without the factor.

    Raises:
        ValueError: beta is not between 0 and 1.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, not {beta}: use kl_q_p or kl_p_q there")
    m = torch.logaddexp(q + math.log(beta), p + math.log1p(-beta))
    return beta * _mean_gap(q, q, m) + (1 - beta) * _mean_gap(p, p, m)


def with_tail(logprobs: Tensor) -> Tensor:
    """`(..., K)` of distinct tokens to `(..., K + 1)`: all other tokens are one more outcome.

    A divergence of two such distributions is a lower bound of the one over the vocabulary, and
    zero only where all K and the tail agree: who minimises it gets the K probabilities right, and
    leaves open how the tail is divided (the data-processing inequality). A tail is never taken to
    be smaller than `TAIL`, and has no gradient there.
    """
    tail = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=TAIL).log()
    return torch.cat([logprobs, tail], -1)


def renormalised(logprobs: Tensor) -> Tensor:
    """`(..., K)` of distinct tokens to the distribution given that it is one of them.

    The rest of the vocabulary is forgotten. So KL(p || q) of two such distributions is zero for
    a policy that has any mass on other tokens, and its gradient is not that of the whole
    (arXiv:2605.11182). Renormalising the teacher alone says that it would never use another
    token: then KL(q || p) is a divergence to the whole policy, least where p is q renormalised.
    """
    return logprobs.log_softmax(-1)


def k1(p: Tensor, q: Tensor) -> Tensor:
    """log p(y) - log q(y) of tokens y drawn from p: its mean is KL(p || q), without bias.

    Schulman 2020, "Approximating KL divergence". Often negative. It is a number to report, or
    with its sign turned an advantage: the policy gradient with that is the gradient of
    KL(p || q). Differentiated as a loss it has the expected gradient 0.
    """
    return p - q


def k3(p: Tensor, q: Tensor) -> Tensor:
    """r - 1 - log r with r = q(y)/p(y), of tokens y drawn from p: its mean is KL(p || q).

    Schulman 2020, "Approximating KL divergence". Without bias where p reaches wherever q does;
    never negative, and of small variance where p and q are close. Differentiated as a loss it has
    the expected gradient of KL(q || p), the other direction.
    """
    return torch.expm1(q - p) - (q - p)


def _mean_gap(weights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_v exp(weights_v) (a_v - b_v), where an outcome of probability 0 counts nothing."""
    gone = weights == -torch.inf
    gap = torch.where(gone, 0.0, a) - torch.where(gone, 0.0, b)
    return (weights.exp() * gap).sum(-1)

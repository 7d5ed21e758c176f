"""Drawing one token for each row from its logits. Shapes: B rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from posttrain.engine.errors import UserError


class Asks(Protocol):
    """What a sampling request says about the distribution."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...


@dataclass(frozen=True)
class Policy:
    """The requests of a batch as tensors; None where no row asks for the thing."""

    temperature: Tensor | None  # (B, 1), 1 in greedy rows
    greedy: Tensor | None  # (B,) bool
    trimmed: Tensor | None  # (R,) the rows with a top-k or top-p
    top_k: Tensor | None  # (R, 1)
    top_p: Tensor | None  # (R, 1)

    @classmethod
    def of(cls, rows: Sequence[Asks], device: torch.device) -> Policy:
        device = precise(device)
        heat = torch.tensor([row.temperature for row in rows], dtype=torch.float32, device=device)
        greedy = heat == 0
        heat = heat.masked_fill(greedy, 1.0)[:, None]
        cut = [i for i, row in enumerate(rows) if row.top_k > 0 or row.top_p < 1]
        huge = torch.iinfo(torch.long).max
        ranks = [[rows[i].top_k if rows[i].top_k > 0 else huge] for i in cut]
        masses = [[rows[i].top_p] for i in cut]
        return cls(
            heat if bool((heat != 1).any()) else None,
            greedy if bool(greedy.any()) else None,
            torch.tensor(cut, device=device) if cut else None,
            torch.tensor(ranks, device=device) if cut else None,
            torch.tensor(masses, device=device) if cut else None,
        )


def draw(logits: Tensor, uniforms: np.ndarray, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Sample by inverting the cumulative distribution at one uniform number a row.

    Args:
        logits: float32 `(B, V)`.
        uniforms: `(B,)` in [0, 1).

    Returns:
        Tokens int64 `(B,)`, and their log-probabilities float32 `(B,)` at temperature 1 without
        top-k and top-p.

    Raises:
        UserError: the logits are not finite.
    """
    logits = logits.to(precise(logits.device))
    normal = logits.logsumexp(-1, keepdim=True)
    if not bool(normal.isfinite().all()):
        raise UserError("the model's output is not finite; its training has diverged")
    if policy.temperature is None:
        probabilities = (logits - normal).exp()
    else:
        probabilities = (logits / policy.temperature).softmax(-1)
    if policy.trimmed is not None and policy.top_k is not None and policy.top_p is not None:
        kept = trim(probabilities[policy.trimmed], policy.top_k, policy.top_p)
        probabilities[policy.trimmed] = kept
    # float64: in float32 the sum over a large vocabulary would lose the rare tokens.
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:]
    point = torch.from_numpy(uniforms).to(logits.device)[:, None] * total
    # Rounding may push the product up to the total, past the last token of positive probability.
    point = point.minimum(torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, point, right=True)[:, 0]
    if policy.greedy is not None:
        tokens = torch.where(policy.greedy, logits.argmax(-1), tokens)
    logprobs = (logits.gather(-1, tokens[:, None]) - normal)[:, 0]
    return tokens.cpu().numpy(), logprobs.cpu().numpy()


def precise(device: torch.device) -> torch.device:
    """Where to draw: Metal has no float64, so what was computed there is drawn from on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def trim(probabilities: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the k most probable tokens, then all but the smallest set of mass p.

    As in `transformers`, top-p applies to what top-k has left, renormalised; the most probable
    token always stays.
    """
    ordered, order = probabilities.sort(-1, descending=True)
    ranks = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = ordered.masked_fill(ranks >= top_k, 0.0)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)

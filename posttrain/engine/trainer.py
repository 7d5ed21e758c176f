"""One training client: an adapter on a shared frozen decoder, its gradients, its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.engine.attention import ForestAttention
from posttrain.engine.datum import Datum, check, find_loss
from posttrain.engine.errors import UserError
from posttrain.engine.head import target_logprobs
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.losses import Loss
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.passes import Pass, passes

TOKENS = 2048  # positions in one pass: beyond this, caches overflow
PAIRS = 2**21  # pairs of positions in one pass; each costs 4 bytes a head and layer


@dataclass(frozen=True)
class AdamParams:
    """One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); the defaults are Tinker's."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0  # 0 means no clipping

    def __post_init__(self) -> None:
        if not all(np.isfinite(list(vars(self).values()))) or min(vars(self).values()) < 0:
            raise UserError(f"Adam parameters must be finite and not negative: {self}")
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise UserError(f"beta1 and beta2 must be below 1: {self.beta1}, {self.beta2}")


@dataclass(frozen=True)
class Output:
    """`logprobs[i]` has the shape of the i-th datum's target_tokens; metrics are sums."""

    logprobs: list[np.ndarray]
    metrics: dict[str, float]


class Trainer:
    """Accumulates gradients of the adapter until an optimizer step uses them."""

    def __init__(
        self, base: Decoder, config: LoraConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is what matrices are multiplied in; adapter and optimizer are float32 always.

        Raises UserError where the rank does not fit the model.
        """
        limit = base.config.hidden_size
        if not 1 <= config.rank <= limit:
            raise UserError(f"LoRA rank {config.rank} is not between 1 and this model's {limit}")
        self.base = base
        self.adapter = Adapter.fresh(base.linear_shapes(), config)
        for factor in self.adapter.parameters():
            factor.data = factor.data.to(base.lm_head.weight.device)
        self.dtype = dtype
        self.packed: Packed | None = None  # None where it does not hold the present weights
        self.gradients: list[Tensor] | None = None
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), fused=True)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_name: str,
        settings: Mapping[str, float | str],
        *,
        backward: bool = True,
    ) -> Output:
        """The summed loss of `data`, and (with `backward`) its gradient, added to what is there.

        The result does not depend on how data are batched, but for rounding.

        Raises:
            UserError: the request cannot be computed or is not finite; nothing was changed.
        """
        loss, complete = find_loss(loss_name, settings)
        check(data, loss_name, self.base.config)
        logprobs: list[np.ndarray] = [np.empty(0)] * len(data)
        totals = np.zeros(len(data))
        gradients: list[Tensor] | None = None
        packed = self.pack()
        for batch in passes(data, TOKENS, PAIRS, packed.device):
            with torch.set_grad_enabled(backward):
                scores = self.score(packed, batch, loss)
                losses = loss.function(scores, batch.inputs, complete) * batch.inputs["weights"]
                per_datum = losses.sum((1, 2))
            found = per_datum.detach().cpu().double().numpy()
            for row, index in enumerate(batch.indices):
                shape = data[index].inputs["target_tokens"].shape
                cells = scores[row, : shape[0], : shape[1] if len(shape) > 1 else 1]
                logprobs[index] = cells.detach().float().cpu().numpy().reshape(shape)
                totals[index] = found[row]
                if not np.isfinite(totals[index]):
                    raise UserError(f"datum {index}: the loss is {totals[index]}")
            if backward and per_datum.requires_grad:
                gradients = self.add(gradients, per_datum.sum())
        if gradients is not None:
            self.gradients = plus(self.gradients, gradients)
        return Output(logprobs, {"loss:sum": float(totals.sum())})

    def pack(self) -> Packed:
        """The base model with the present adapter, arranged for computing."""
        if self.packed is None:
            self.packed = Packed(self.base, self.adapter, self.dtype)
        return self.packed

    def score(self, packed: Packed, batch: Pass, loss: Loss) -> Tensor:
        """Log-probabilities of the targets `(B, T, K)`; a gradient only where the loss has one."""
        forest = batch.forest
        hidden = packed.hidden(
            forest.tokens, forest.positions, ForestAttention(forest, packed.dtype)
        )
        weighs = batch.inputs["weights"]
        if loss.silent is not None:
            weighs = weighs * batch.inputs[loss.silent]
        active = (weighs != 0).any(-1)[batch.real]
        found = cell_logprobs(
            packed, hidden, batch.cells[batch.real], batch.targets[batch.real], active
        )
        scores = torch.zeros(batch.targets.shape, device=hidden.device)
        return scores.index_put((batch.real,), found)

    def add(self, gradients: list[Tensor] | None, total: Tensor) -> list[Tensor]:
        """`gradients` plus those of `total`."""
        parameters = self.adapter.parameters()
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        new = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]
        return plus(gradients, new)

    def optim_step(self, params: AdamParams) -> dict[str, float]:
        """Apply the accumulated gradients, and forget them. Without any, nothing moves."""
        factors = self.adapter.parameters()
        norm = 0.0
        if self.gradients is not None:
            norms = torch.stack([gradient.norm() for gradient in self.gradients])
            norm = float(norms.norm())
            shrink = min(1.0, params.grad_clip_norm / (norm + 1e-6)) if norm else 1.0
            if params.grad_clip_norm > 0 and shrink < 1.0:
                for gradient in self.gradients:
                    gradient.mul_(shrink)
            for factor, gradient in zip(factors, self.gradients, strict=True):
                factor.grad = gradient
        self.optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients = self.packed = None
        return {"grad_norm:mean": norm}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Flat tensors for safetensors, keyed `<factor>.<exp_avg, exp_avg_sq or step>`."""
        return {
            f"{name}.{key}": value.clone()
            for name, factor in zip(self.adapter.state(), self.adapter.parameters(), strict=True)
            for key, value in self.optimizer.state.get(factor, {}).items()
        }

    def load(self, adapter: dict[str, Tensor], optimizer: dict[str, Tensor] | None) -> None:
        """Replace the weights, and the optimizer's state (None: start it afresh).

        Gradients that were not yet applied belong to the old weights and are dropped.

        Raises:
            UserError: the checkpoint is of an adapter of another shape.
        """
        try:
            self.adapter.load(adapter)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.gradients = self.packed = None
        self.reset_optimizer()
        for name, factor in zip(self.adapter.state(), self.adapter.parameters(), strict=True):
            state = {
                key: optimizer[f"{name}.{key}"].to(factor.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if optimizer is not None and f"{name}.{key}" in optimizer
            }
            if state:
                self.optimizer.state[factor] = state


def cell_logprobs(
    packed: Packed, hidden: Tensor, cells: Tensor, targets: Tensor, active: Tensor
) -> Tensor:
    """Log-probabilities `(M, K)` of `targets` at positions `cells` `(M,)` of `hidden` `(N, D)`.

    What several examples ask in common is computed once. Only where `active` `(M,)` is True for
    one of them has the result a gradient: elsewhere no logits are kept.
    """
    inverse = None
    if targets.shape[1] == 1:
        size = packed.config.vocab_size
        asked, inverse = torch.unique(cells * size + targets[:, 0], return_inverse=True)
        cells, targets = asked // size, asked[:, None] % size
        active = torch.zeros(len(asked), device=cells.device).index_add_(0, inverse, active.float())
    scores = torch.zeros(targets.shape, device=hidden.device)
    for wanted in (True, False):
        (where,) = ((active != 0) == wanted).nonzero(as_tuple=True)
        if len(where):
            with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
                states = hidden.index_select(0, cells[where])
                found = target_logprobs(packed.head, states, targets[where])
            scores = scores.index_put((where,), found)
    return scores if inverse is None else scores.index_select(0, inverse)


def plus(old: list[Tensor] | None, new: list[Tensor]) -> list[Tensor]:
    """The sum of two lists of gradients; does not change either."""
    return new if old is None else [a + b for a, b in zip(old, new, strict=True)]

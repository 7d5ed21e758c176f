"""One training client: an adapter on a shared frozen decoder, its gradients, its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posttrain.engine.datum import Batch, Datum, batches, check, find_loss
from posttrain.engine.errors import UserError
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.losses import Loss
from posttrain.engine.model import Decoder

TOKENS = 2048  # positions in one pass, padding included: beyond this, caches overflow
PAIRS = 2**21  # B * T * T in one pass; each costs 8 bytes a head and layer until the backward
CELLS = 2**24  # logits held at once, in float32: 64 MiB


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

    def __init__(self, base: Decoder, config: LoraConfig) -> None:
        """Raises UserError where the rank does not fit the model."""
        limit = base.config.hidden_size
        if not 1 <= config.rank <= limit:
            raise UserError(f"LoRA rank {config.rank} is not between 1 and this model's {limit}")
        self.base = base
        self.adapter = Adapter.fresh(base.linear_shapes(), config)
        for factor in self.adapter.parameters():
            factor.data = factor.data.to(base.lm_head.weight.device)
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
        for batch in batches(data, TOKENS, PAIRS):
            batch = to_device(batch, self.base.lm_head.weight.device)
            with torch.set_grad_enabled(backward):
                scores = self.score(batch, loss)
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

    def score(self, batch: Batch, loss: Loss) -> Tensor:
        """Log-probabilities of the targets `(B, T, K)`; a gradient only where the loss has one."""
        hidden = self.base(batch.tokens, adapter=self.adapter)
        weighs = batch.inputs["weights"]
        if loss.silent is not None:
            weighs = weighs * batch.inputs[loss.silent]
        active = batch.real & (weighs != 0).any(-1)
        scores = torch.zeros(batch.targets.shape, device=hidden.device)
        for places, wanted in ((active, True), (batch.real & ~active, False)):
            where = places.nonzero(as_tuple=True)
            with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
                found = target_logprobs(
                    self.base, self.adapter, hidden[where], batch.targets[where]
                )
            scores = scores.index_put(where, found)
        return scores

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
        self.gradients = None
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
        self.gradients = None
        self.reset_optimizer()
        for name, factor in zip(self.adapter.state(), self.adapter.parameters(), strict=True):
            state = {
                key: optimizer[f"{name}.{key}"].to(factor.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if optimizer is not None and f"{name}.{key}" in optimizer
            }
            if state:
                self.optimizer.state[factor] = state


def target_logprobs(
    decoder: Decoder, adapter: Adapter | None, hidden: Tensor, targets: Tensor
) -> Tensor:
    """Log-probabilities, float32 `(M, K)`, of `targets` `(M, K)` after `hidden` `(M, D)`.

    At most CELLS logits exist at a time; beyond that the backward pass computes them again.
    """

    def piece(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = decoder.logits(hidden, adapter).float()
        return logits.gather(-1, targets) - logits.logsumexp(-1, keepdim=True)

    size = max(1, CELLS // decoder.config.vocab_size)
    if len(hidden) <= size:
        return piece(hidden, targets)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(piece, h, t, use_reentrant=False) for h, t in parts])


def plus(old: list[Tensor] | None, new: list[Tensor]) -> list[Tensor]:
    """The sum of two lists of gradients; does not change either."""
    return new if old is None else [a + b for a, b in zip(old, new, strict=True)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return Batch(
        batch.indices,
        batch.tokens.to(device),
        batch.real.to(device),
        batch.targets.to(device),
        {name: value.to(device) for name, value in batch.inputs.items()},
    )

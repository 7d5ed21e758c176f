"""Training examples and their validation.

Shapes: T positions, K targets a position (1 except for soft targets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.engine.config import DecoderConfig
from posttrain.engine.errors import UserError
from posttrain.engine.losses import LOSSES, Loss


@dataclass
class Datum:
    """One example: `tokens` `(T,)` int64, and inputs of shape `(T,)` or `(T, K)`."""

    tokens: np.ndarray
    inputs: dict[str, np.ndarray]


def find_loss(name: str, settings: Mapping[str, float | str]) -> tuple[Loss, dict[str, float]]:
    """The named loss with its complete settings.

    Raises:
        UserError: unknown loss, unknown or missing or non-numeric setting.
    """
    loss = LOSSES.get(name)
    if loss is None:
        raise UserError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    for key in settings:
        if key not in loss.settings:
            known = ", ".join(loss.settings) or "none"
            raise UserError(f"loss {name} has no setting {key!r}; known: {known}")
    complete: dict[str, float] = {}
    for key, default in loss.settings.items():
        value = settings.get(key, default)
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise UserError(f"loss {name} needs a finite number for the setting {key!r}")
        complete[key] = float(value)
    return loss, complete


def check(data: Sequence[Datum], name: str, config: DecoderConfig) -> None:
    """Refuse data that the loss `name` cannot be computed on.

    Raises:
        UserError: names the index of the first datum at fault and what is wrong with it.
    """
    if not data:
        raise UserError("the request holds no data")
    for index, datum in enumerate(data):
        problem = fault(datum, name, config)
        if problem:
            raise UserError(f"datum {index}: {problem}")


def fault(datum: Datum, name: str, config: DecoderConfig) -> str | None:
    """What is wrong with one datum, or None."""
    length, limit, vocab = len(datum.tokens), config.max_position_embeddings, config.vocab_size
    if not length:
        return "model_input is empty"
    if length > limit:
        return f"model_input has {length} tokens; the model's context is {limit}"
    if datum.tokens.min() < 0 or datum.tokens.max() >= vocab:
        return f"model_input holds a token outside the vocabulary of {vocab}"
    needed = ("target_tokens", *LOSSES[name].inputs)
    for key in needed:
        if key not in datum.inputs:
            return f"loss {name} needs the input {key!r}"
    for key in datum.inputs:
        if key not in (*needed, "weights"):
            known = ", ".join((*needed, "weights"))
            return f"loss {name} takes no input {key!r}; known: {known}"
    targets = datum.inputs["target_tokens"]
    if not np.issubdtype(targets.dtype, np.integer):
        return f"target_tokens must be integers, not {targets.dtype}"
    if targets.ndim not in ((1, 2) if name == "cross_entropy" else (1,)):
        return f"target_tokens has {targets.ndim} dimensions, which loss {name} does not take"
    if targets.shape[0] != length:
        return f"target_tokens has length {targets.shape[0]}, model_input {length}"
    if not targets.size:
        return "target_tokens has no target for a position"
    if targets.min() < 0 or targets.max() >= vocab:
        return f"target_tokens holds a token outside the vocabulary of {vocab}"
    for key, value in datum.inputs.items():
        if value.shape != targets.shape:
            return f"{key} has shape {value.shape}, target_tokens {targets.shape}"
        if not np.isfinite(value).all():
            return f"{key} holds NaN or infinity"
    return None

"""Training examples: their validation, and their arrangement into padded batches.

Shapes: B examples, T positions, K targets a position (1 except for soft targets).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.engine.config import DecoderConfig
from posttrain.engine.errors import UserError
from posttrain.engine.losses import LOSSES, Loss


@dataclass
class Datum:
    """One example: `tokens` `(T,)` int64, and inputs of shape `(T,)` or `(T, K)`."""

    tokens: np.ndarray
    inputs: dict[str, np.ndarray]


@dataclass
class Batch:
    """Examples padded on the right: `tokens` and `real` `(B, T)`, inputs `(B, T, K)`."""

    indices: list[int]
    tokens: Tensor
    real: Tensor
    targets: Tensor
    inputs: dict[str, Tensor]


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


def batches(data: Sequence[Datum], tokens: int, pairs: int) -> Iterator[Batch]:
    """Arrange data of similar length together.

    Args:
        tokens: upper bound of B * T, padding included, unless one datum alone is longer.
        pairs: the same of B * T * T, which bounds the memory of attention.
    """
    order = sorted(range(len(data)), key=lambda index: -len(data[index].tokens))
    while order:
        length = len(data[order[0]].tokens)
        count = max(1, min(tokens // length, pairs // length**2))
        yield collate(data, order[:count])
        order = order[count:]


def collate(data: Sequence[Datum], indices: list[int]) -> Batch:
    """Pad the given data to one rectangle; cells without a datum's value are zero."""
    chosen = [data[index] for index in indices]
    rows, length = len(chosen), max(len(datum.tokens) for datum in chosen)
    width = max(datum.inputs["target_tokens"][0].size for datum in chosen)
    tokens = np.zeros((rows, length), np.int64)
    real = np.zeros((rows, length), bool)
    targets = np.zeros((rows, length, width), np.int64)
    names = {name for datum in chosen for name in datum.inputs} - {"target_tokens"}
    inputs = {name: np.zeros((rows, length, width), np.float32) for name in names | {"weights"}}
    for row, datum in enumerate(chosen):
        end = len(datum.tokens)
        tokens[row, :end] = datum.tokens
        real[row, :end] = True
        cells = datum.inputs["target_tokens"].reshape(end, -1)
        targets[row, :end, : cells.shape[1]] = cells
        inputs["weights"][row, :end, : cells.shape[1]] = 1.0
        for name in names & datum.inputs.keys():
            inputs[name][row, :end, : cells.shape[1]] = datum.inputs[name].reshape(end, -1)
    return Batch(
        indices,
        torch.from_numpy(tokens),
        torch.from_numpy(real),
        torch.from_numpy(targets),
        {name: torch.from_numpy(value) for name, value in inputs.items()},
    )

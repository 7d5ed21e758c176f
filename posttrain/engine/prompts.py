"""What a request may ask about its prompt beyond the log-probabilities of its own tokens.

Position i + 1 of a prompt is predicted from `hidden[i]`, so rows are numbered by i. Shapes: P
prompt tokens, D hidden, V vocabulary, M wanted cells, K draws a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from posttrain.engine.errors import UserError
from posttrain.engine.packed import Packed

LOGITS = 2**24  # numbers in float32 that are held at once
STREAM = 2**63  # the stream of random numbers for alternatives; samples have 0, 1, ...


@dataclass(frozen=True)
class Targets:
    """Tokens to be scored, dense or sparse as they were asked for.

    Attributes:
        rows: int64 `(M,)`, cell m is a token at prompt position `rows[m] + 1`.
        tokens: int64 `(M,)`, its id; -1 asks for nothing and is answered with 0.
        shape: `(P - 1, K)` of the dense tensor.
        starts, columns: row pointers and column indices, where the tensor is sparse.
    """

    rows: np.ndarray
    tokens: np.ndarray
    shape: tuple[int, int]
    starts: np.ndarray | None = None
    columns: np.ndarray | None = None


class Alternatives(NamedTuple):
    """Draws int64 and their log-probabilities float32, both `(P - 1, K)`."""

    tokens: np.ndarray
    logprobs: np.ndarray


def target_scores(packed: Packed, hidden: Tensor, targets: Targets) -> np.ndarray:
    """The log-probability of each cell, float32 `(M,)`; `hidden` is `(T, D)` with T >= P - 1."""
    scores = np.zeros(len(targets.rows), np.float32)
    wanted = np.flatnonzero(targets.tokens >= 0)
    wanted = wanted[np.argsort(targets.rows[wanted], kind="stable")]
    rows, place = np.unique(targets.rows[wanted], return_inverse=True)
    for start, logprobs in pieces(packed, hidden[torch.from_numpy(rows).to(hidden.device)]):
        inside = (place >= start) & (place < start + len(logprobs))
        row = torch.from_numpy(place[inside] - start).to(hidden.device)
        token = torch.from_numpy(targets.tokens[wanted[inside]]).to(hidden.device)
        scores[wanted[inside]] = logprobs[row, token].cpu().numpy()
    return scores


def draw_alternatives(
    packed: Packed, hidden: Tensor, count: int, temperature: float, seed: int
) -> Alternatives:
    """`count` independent draws at every position after the first.

    Drawn at the request's temperature, without top-k and top-p; 0 repeats the most probable
    token. The log-probabilities are those at temperature 1, as everywhere. `hidden` is
    `(P - 1, D)`.
    """
    random = np.random.Generator(np.random.Philox(key=[seed % 2**64, STREAM]))
    uniforms = torch.from_numpy(random.random((len(hidden), count))).to(hidden.device)
    tokens = np.zeros((len(hidden), count), np.int64)
    scores = np.zeros((len(hidden), count), np.float32)
    for start, logprobs in pieces(packed, hidden):
        end = start + len(logprobs)
        if temperature:
            cumulative = (logprobs / temperature).softmax(-1).double().cumsum(-1)
            total = cumulative[:, -1:]
            point = (uniforms[start:end] * total).minimum(total.nextafter(torch.zeros_like(total)))
            drawn = torch.searchsorted(cumulative, point, right=True)
        else:
            drawn = logprobs.argmax(-1, keepdim=True).expand(-1, count)
        tokens[start:end] = drawn.cpu().numpy()
        scores[start:end] = logprobs.gather(-1, drawn).cpu().numpy()
    return Alternatives(tokens, scores)


def pieces(packed: Packed, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, log-probabilities float32 `(rows, V)`) of parts that fit in memory.

    Raises:
        UserError: they are not finite.
    """
    size = max(1, LOGITS // packed.config.vocab_size)
    for start in range(0, len(hidden), size):
        part = hidden[start : start + size]
        logprobs = packed.logits(part).log_softmax(-1)
        if bool(logprobs.isnan().any()):
            raise UserError("the model's output is not finite; its training has diverged")
        yield start, logprobs

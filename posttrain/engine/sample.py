"""What to sample, and what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from posttrain.engine.config import DecoderConfig
from posttrain.engine.errors import UserError
from posttrain.engine.prompts import Alternatives, Targets
from posttrain.engine.stops import Stops


@dataclass(frozen=True)
class Request:
    """What to sample. `prompt` is at least one token; -1 and 1.0 switch top_k and top_p off."""

    prompt: tuple[int, ...]
    num_samples: int = 1
    max_tokens: int | None = None  # None: up to the model's context
    temperature: float = 1.0  # 0: the most probable token
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stops: Stops = field(default_factory=Stops)
    prompt_logprobs: bool = False  # return the log-probabilities of the prompt's tokens
    topk_prompt: int = 0  # and the k most probable tokens at each position of the prompt
    topk_sample: int = 0  # and of each sample
    last_n: int | None = None  # of the prompt only the last n positions; None: all
    targets: Targets | None = None  # other tokens to score at positions of the prompt
    alternatives: int = 0  # tokens to draw at each position of the prompt after the first

    def check(self, config: DecoderConfig) -> None:
        """Raises UserError where this model cannot carry the request out."""
        limit, vocab = config.max_position_embeddings, config.vocab_size
        if not self.prompt:
            raise UserError("the prompt is empty")
        if len(self.prompt) > limit:
            raise UserError(f"the prompt has {len(self.prompt)} tokens; the context is {limit}")
        if min(self.prompt) < 0 or max(self.prompt) >= vocab:
            raise UserError(f"the prompt holds a token outside the vocabulary of {vocab}")
        if not 1 <= self.num_samples <= 4096:
            raise UserError(f"num_samples is {self.num_samples}, not between 1 and 4096")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise UserError(f"max_tokens is {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}, not a number from 0 up")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, not in (0, 1]")
        if not (0 <= self.topk_prompt <= vocab and 0 <= self.topk_sample <= vocab):
            raise UserError(f"a number of most probable tokens is not between 0 and {vocab}")
        if self.top_k < 1 and self.top_k != -1:
            raise UserError(f"top_k is {self.top_k}, neither positive nor -1 (off)")

    @property
    def first(self) -> int:
        """The first position of the prompt that is scored; nothing predicts position 0."""
        length = len(self.prompt)
        return max(1, 0 if self.last_n is None else length - self.last_n)

    def span(self, config: DecoderConfig) -> int:
        """The cache positions that all its samples may come to need: the prompt's are shared."""
        return len(self.prompt) + self.num_samples * self.room(config)

    def room(self, config: DecoderConfig) -> int:
        """How many tokens may be generated: max_tokens, as far as the context allows."""
        left = config.max_position_embeddings - len(self.prompt)
        return left if self.max_tokens is None else min(self.max_tokens, left)


class Top(NamedTuple):
    """The k most probable tokens of one position: ids int64 and log-probabilities, each `(k,)`."""

    tokens: np.ndarray
    logprobs: np.ndarray


@dataclass
class Sample:
    """One generated sequence; `stopped` says that a stop ended it, not its length."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    stopped: bool = False


@dataclass
class Result:
    """Filled in while `unfinished` counts down to 0.

    `prompt_logprobs` is float32 `(P,)` with NaN where nothing was asked, or None. `prompt_tops`
    belongs to the last positions of the prompt, or is empty.
    """

    prompt_length: int
    samples: list[Sample]
    unfinished: int
    prompt_logprobs: np.ndarray | None = None
    prompt_tops: list[Top] = field(default_factory=list)
    target_scores: np.ndarray | None = None  # one for each cell of the request's targets
    alternatives: Alternatives | None = None

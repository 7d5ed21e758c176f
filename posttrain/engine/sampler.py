"""Batched generation: many requests share every forward pass.

A `Generation` holds the rows being generated with one set of weights. Requests are admitted at
any time; each distinct prompt among those admitted together is computed once, whatever its
number of samples; rows that have finished leave the batch. Shapes: B rows, V vocabulary.

Returned log-probabilities are those of the model itself (the unscaled logits), so that a
trainer's ratio is 1 on fresh samples, whatever temperature they were drawn at.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from posttrain.engine.config import DecoderConfig
from posttrain.engine.draw import Policy, draw
from posttrain.engine.errors import UserError
from posttrain.engine.model import Cache, Decoder
from posttrain.engine.prompts import Alternatives, Targets, draw_alternatives, target_scores
from posttrain.engine.stops import Stops
from posttrain.engine.trainer import CELLS, target_logprobs

PREFILL = 4096  # prompt positions in one pass, padding included
BLOCK = 64  # random numbers drawn for a row, and cache positions added, at a time
SPARSE = 0.6  # the batch is packed when fewer of its rows than this are alive


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
        """The cache positions that all its samples may come to need."""
        return self.num_samples * (len(self.prompt) + self.room(config))

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


@dataclass
class Row:
    """One row of the batch: whose it is, and the random numbers that belong to it alone."""

    request: Request
    result: Result
    sample: Sample
    random: np.random.Generator
    room: int
    alive: bool = True


class Generation:
    """The rows now being generated on one decoder."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.device = decoder.lm_head.weight.device
        self.rows: list[Row] = []
        self.cache: Cache | None = None
        self.tokens = np.zeros(0, np.int64)  # (B,) what each row reads next
        self.positions = np.zeros(0, np.int64)  # (B,) where that token stands
        self.counts = np.zeros(0, np.int64)  # (B,) how many tokens it has generated
        self.uniforms = np.zeros((0, BLOCK))  # (B, BLOCK) each row's present random numbers
        self.policy = Policy.of([], self.device)

    @property
    def live(self) -> int:
        return sum(row.alive for row in self.rows)

    @property
    def span(self) -> int:
        """The cache positions that the live rows may come to need."""
        return sum(len(row.request.prompt) + row.room for row in self.rows if row.alive)

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> list[Result]:
        """Compute the prompts of `requests`, and the first token of every sample.

        The results are filled in by `step` until their `unfinished` is 0.
        """
        results = [Result(len(request.prompt), [], request.num_samples) for request in requests]
        owners: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            owners.setdefault(request.prompt, []).append(index)
        for prompts in prefills(list(owners)):
            hidden, cache = self.prefill(prompts)
            rows, sources = [], []
            for source, prompt in enumerate(prompts):
                for index in owners[prompt]:
                    request, result = requests[index], results[index]
                    self.score(hidden[source], request, result)
                    new = self.fresh_rows(request, result)
                    rows += new
                    sources += [source] * len(new)
            if rows:
                self.join(rows, sources, hidden, cache)
        return results

    def prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, Cache]:
        """One pass over distinct prompts, padded on the right: hidden `(B, T, D)`, and a cache."""
        tokens = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens = tokens.to(self.device)
        positions = torch.arange(tokens.shape[1], device=self.device).expand(tokens.shape)
        rows, length = tokens.shape
        cache = Cache(self.decoder.config, rows, length, self.decoder.lm_head.weight)
        return self.decoder(tokens, positions=positions, cache=cache), cache

    def score(self, hidden: Tensor, request: Request, result: Result) -> None:
        """What the request asks about its prompt, each position given those before it."""
        length, first = len(request.prompt), request.first
        if request.targets is not None:
            result.target_scores = target_scores(self.decoder, hidden, request.targets)
        if request.alternatives:
            seed = secrets.randbits(64) if request.seed is None else request.seed
            result.alternatives = draw_alternatives(
                self.decoder, hidden[: length - 1], request.alternatives, request.temperature, seed
            )
        if request.prompt_logprobs:
            result.prompt_logprobs = np.full(length, np.nan, np.float32)
        if first >= length:
            return
        before = hidden[first - 1 : length - 1]
        if result.prompt_logprobs is not None:
            targets = torch.tensor(request.prompt[first:], device=self.device)[:, None]
            scores = target_logprobs(self.decoder, None, before, targets)
            result.prompt_logprobs[first:] = scores[:, 0].cpu().numpy()
        if request.topk_prompt:
            for part in before.split(max(1, CELLS // self.decoder.config.vocab_size)):
                result.prompt_tops += tops(self.decoder.logits(part).float(), request.topk_prompt)

    def fresh_rows(self, request: Request, result: Result) -> list[Row]:
        """A row for each sample. Its random numbers depend on (seed, index of the sample) only."""
        result.samples = [Sample() for _ in range(request.num_samples)]
        room = request.room(self.decoder.config)
        if not room:
            result.unfinished = 0
            return []
        seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
        return [
            Row(request, result, sample, np.random.Generator(np.random.Philox(key=[seed, i])), room)
            for i, sample in enumerate(result.samples)
        ]

    def join(self, rows: list[Row], sources: list[int], hidden: Tensor, cache: Cache) -> None:
        """Append rows that continue the given prompts, and give each its first token."""
        lengths = np.array([len(row.request.prompt) for row in rows])
        source = torch.tensor(sources, device=self.device)
        ends = torch.from_numpy(lengths - 1).to(self.device)
        uniforms = np.stack([row.random.random(BLOCK) for row in rows])
        policy = Policy.of([row.request for row in rows], self.device)
        logits = self.decoder.logits(hidden[source, ends]).float()
        tokens, logprobs = draw(logits, uniforms[:, 0], policy)
        add_tops(rows, logits)
        capacity = max(int(lengths.max()) + BLOCK, self.cache.capacity if self.cache else 0)
        parts = [(cache, source)]
        if self.cache is not None:
            parts.insert(0, (self.cache, torch.arange(len(self.rows), device=self.device)))
        self.cache = Cache.gather(self.decoder.config, parts, capacity)
        self.rows = self.rows + rows
        self.tokens = np.concatenate([self.tokens, tokens])
        self.positions = np.concatenate([self.positions, lengths])
        self.counts = np.concatenate([self.counts, np.ones(len(rows), np.int64)])
        self.uniforms = np.concatenate([self.uniforms, uniforms])
        self.policy = Policy.of([row.request for row in self.rows], self.device)
        self.record(rows, tokens, logprobs)

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every live row."""
        if not self.live or self.cache is None:
            return
        self.cache = self.pack(self.cache)
        for row in np.flatnonzero(self.counts % BLOCK == 0):
            self.uniforms[row] = self.rows[row].random.random(BLOCK)
        uniforms = self.uniforms[np.arange(len(self.rows)), self.counts % BLOCK]
        tokens = torch.from_numpy(self.tokens).to(self.device)[:, None]
        positions = torch.from_numpy(self.positions).to(self.device)[:, None]
        hidden = self.decoder(tokens, positions=positions, cache=self.cache)
        logits = self.decoder.logits(hidden[:, 0]).float()
        self.tokens, logprobs = draw(logits, uniforms, self.policy)
        add_tops(self.rows, logits)
        self.counts += 1
        self.positions += 1
        self.record(self.rows, self.tokens, logprobs)

    def pack(self, cache: Cache) -> Cache:
        """Drop finished rows once they are many, and make room in the cache for a token."""
        live = [index for index, row in enumerate(self.rows) if row.alive]
        # A finished row that is still computed must not run past the context: hold it still.
        ended = [index for index, row in enumerate(self.rows) if not row.alive]
        self.positions[ended] = 0
        full = int(self.positions.max()) >= cache.capacity
        if not full and len(live) >= SPARSE * len(self.rows):
            return cache
        capacity = cache.capacity + (max(BLOCK, cache.capacity // 4) if full else 0)
        keep = torch.tensor(live, device=self.device)
        self.rows = [self.rows[index] for index in live]
        self.tokens, self.positions = self.tokens[live], self.positions[live]
        self.counts, self.uniforms = self.counts[live], self.uniforms[live]
        self.policy = Policy.of([row.request for row in self.rows], self.device)
        return Cache.gather(self.decoder.config, [(cache, keep)], capacity)

    def record(self, rows: list[Row], tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Append what was drawn to the samples of live rows, and end those that are complete."""
        textual = []
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if not row.alive:
                continue
            row.sample.tokens.append(token)
            row.sample.logprobs.append(logprob)
            if row.request.stops.strings:
                textual.append(row)
            if token in row.request.stops.tokens:
                row.sample.stopped = True
            if row.sample.stopped or len(row.sample.tokens) >= row.room:
                row.alive = False
                row.result.unfinished -= 1
        if textual and self.tokenizer is not None:
            tails = [row.sample.tokens[-row.request.stops.reach :] for row in textual]
            texts = self.tokenizer.decode_batch(tails, skip_special_tokens=False)
            for row, text in zip(textual, texts, strict=True):
                if any(stop in text for stop in row.request.stops.strings):
                    row.sample.stopped = True
                    row.result.unfinished -= row.alive
                    row.alive = False


def tops(logits: Tensor, k: int) -> list[Top]:
    """For each row of `logits` `(N, V)` its k most probable tokens, most probable first."""
    values, tokens = logits.log_softmax(-1).topk(k)
    return [Top(*row) for row in zip(tokens.cpu().numpy(), values.cpu().numpy(), strict=True)]


def add_tops(rows: list[Row], logits: Tensor) -> None:
    """Append the most probable tokens to the samples of live rows that ask for them."""
    wanted = [i for i, row in enumerate(rows) if row.alive and row.request.topk_sample]
    if not wanted:
        return
    widest = max(rows[i].request.topk_sample for i in wanted)
    for i, top in zip(wanted, tops(logits[wanted], widest), strict=True):
        k = rows[i].request.topk_sample
        rows[i].sample.tops.append(Top(top.tokens[:k], top.logprobs[:k]))


def prefills(prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Distinct prompts in groups of similar length, each of at most PREFILL positions."""
    groups: list[list[tuple[int, ...]]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if not groups or len(groups[-1][0]) * (len(groups[-1]) + 1) > PREFILL:
            groups.append([])
        groups[-1].append(prompt)
    return groups

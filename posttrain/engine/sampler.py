"""Batched generation: many requests share every forward pass.

A `Generation` holds the rows being generated with one set of weights. Requests are admitted at
any time; each distinct prompt among those admitted together is computed and kept once, whatever
its number of samples; rows that have finished leave the batch. Shapes: B rows, V vocabulary.

Returned log-probabilities are those of the model itself (the unscaled logits), so that a
trainer's ratio is 1 on fresh samples, whatever temperature they were drawn at.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from posttrain.engine.attention import ForestAttention
from posttrain.engine.cache import LANES, WIDTH, Cache
from posttrain.engine.draw import Policy, draw
from posttrain.engine.forest import Forest, Group
from posttrain.engine.head import CELLS, target_logprobs
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.prompts import draw_alternatives, target_scores
from posttrain.engine.sample import Request, Result, Sample, Top

PREFILL = 4096  # prompt positions in one pass, padding included
BLOCK = 64  # random numbers drawn for a row at a time
SPARSE = 0.6  # the batch is packed when fewer of its rows than this are alive


@dataclass
class Row:
    """One row of the batch: whose it is, and the random numbers that belong to it alone."""

    request: Request
    result: Result
    sample: Sample
    random: np.random.Generator
    room: int
    alive: bool = True


class Prefill(ForestAttention):
    """Attention among prompts that remembers their keys and values, `(B * K, T, d)` a layer."""

    def __init__(self, forest: Forest, dtype: torch.dtype) -> None:
        super().__init__(forest, dtype)
        self.found: list[tuple[Tensor, Tensor]] = []

    def roots(self, q: Tensor, keys: Tensor, values: Tensor, group: int) -> Tensor:
        self.found.append((keys, values))
        return super().roots(q, keys, values, group)


class Generation:
    """The rows now being generated on one decoder."""

    def __init__(self, decoder: Decoder | Packed, tokenizer: Tokenizer | None) -> None:
        self.packed = decoder if isinstance(decoder, Packed) else Packed(decoder)
        self.config, self.device = self.packed.config, self.packed.device
        self.tokenizer = tokenizer
        self.rows: list[Row] = []
        self.cache = Cache(self.config, self.packed.layers[0].norm_1)
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
        rows = [row for row in self.rows if row.alive]
        prompts = {id(row.result): row.result.prompt_length for row in rows}
        return sum(prompts.values()) + sum(row.room for row in rows)

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
            hidden, ends, keys, values = self.prefill(prompts)
            rows: list[Row] = []
            counts = np.zeros(len(prompts), np.int64)
            for source, prompt in enumerate(prompts):
                for index in owners[prompt]:
                    request, result = requests[index], results[index]
                    end = int(ends[source])
                    self.score(hidden[end + 1 - len(prompt) : end + 1], request, result)
                    new = self.fresh_rows(request, result)
                    rows += new
                    counts[source] += len(new)
            if rows:
                lengths = np.array([len(prompt) for prompt in prompts])
                self.cache.join(keys, values, lengths, counts)
                self.join(rows, hidden[torch.from_numpy(np.repeat(ends, counts))])
        return results

    def prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, np.ndarray, Tensor, Tensor]:
        """One pass over distinct prompts.

        Returns:
            Hidden states of all prompts one after the other `(N, D)`, the place of each prompt's
            last token there, and keys and values `(L, U, K, P, d)`.
        """
        arrays = [np.array(prompt) for prompt in prompts]
        groups = [Group((index,), len(prompt)) for index, prompt in enumerate(prompts)]
        forest = Forest.plant(arrays, groups, self.device, LANES)
        attend = Prefill(forest, self.packed.dtype)
        hidden = self.packed.hidden(forest.tokens, forest.positions, attend)
        keys, values = (torch.stack(part) for part in zip(*attend.found, strict=True))
        shape = len(prompts), self.config.num_key_value_heads
        return (
            hidden,
            np.cumsum([len(prompt) for prompt in prompts]) - 1,
            keys.unflatten(1, shape),
            values.unflatten(1, shape),
        )

    def score(self, hidden: Tensor, request: Request, result: Result) -> None:
        """What the request asks about its prompt, each position given those before it."""
        length, first = len(request.prompt), request.first
        if request.targets is not None:
            result.target_scores = target_scores(self.packed, hidden, request.targets)
        if request.alternatives:
            seed = secrets.randbits(64) if request.seed is None else request.seed
            result.alternatives = draw_alternatives(
                self.packed, hidden[: length - 1], request.alternatives, request.temperature, seed
            )
        if request.prompt_logprobs:
            result.prompt_logprobs = np.full(length, np.nan, np.float32)
        if first >= length:
            return
        before = hidden[first - 1 : length - 1]
        if result.prompt_logprobs is not None:
            targets = torch.tensor(request.prompt[first:], device=self.device)[:, None]
            scores = target_logprobs(self.packed.head, before, targets)
            result.prompt_logprobs[first:] = scores[:, 0].cpu().numpy()
        if request.topk_prompt:
            for part in before.split(max(1, CELLS // self.config.vocab_size)):
                result.prompt_tops += tops(self.packed.logits(part), request.topk_prompt)

    def fresh_rows(self, request: Request, result: Result) -> list[Row]:
        """A row for each sample. Its random numbers depend on (seed, index of the sample) only."""
        result.samples = [Sample() for _ in range(request.num_samples)]
        room = request.room(self.config)
        if not room:
            result.unfinished = 0
            return []
        seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
        return [
            Row(request, result, sample, np.random.Generator(np.random.Philox(key=[seed, i])), room)
            for i, sample in enumerate(result.samples)
        ]

    def join(self, rows: list[Row], hidden: Tensor) -> None:
        """Append rows, and draw each its first token from the state `(B, D)` after its prompt."""
        uniforms = np.stack([row.random.random(BLOCK) for row in rows])
        policy = Policy.of([row.request for row in rows], self.device)
        logits = self.packed.logits(hidden)
        tokens, logprobs = draw(logits, uniforms[:, 0], policy)
        add_tops(rows, logits)
        lengths = np.array([len(row.request.prompt) for row in rows])
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
        if not self.live:
            return
        self.pack()
        for row in np.flatnonzero(self.counts % BLOCK == 0):
            self.uniforms[row] = self.rows[row].random.random(BLOCK)
        uniforms = self.uniforms[np.arange(len(self.rows)), self.counts % BLOCK]
        tokens = torch.from_numpy(self.tokens).to(self.device)
        positions = torch.from_numpy(self.positions).to(self.device)
        self.cache.open(self.counts - 1)
        logits = self.packed.logits(self.packed.hidden(tokens, positions, self.cache.attend))
        self.tokens, logprobs = draw(logits, uniforms, self.policy)
        add_tops(self.rows, logits)
        self.counts += 1
        self.positions += 1
        self.record(self.rows, self.tokens, logprobs)

    def pack(self) -> None:
        """Drop finished rows once they are many."""
        alive = np.array([row.alive for row in self.rows])
        # A finished row that is still computed must not need more room than the living.
        np.minimum(self.counts, self.counts[alive].max(), out=self.counts)
        if alive.sum() >= SPARSE * len(self.rows):
            return
        live = np.flatnonzero(alive)
        self.rows = [self.rows[index] for index in live]
        self.tokens, self.positions = self.tokens[live], self.positions[live]
        self.counts, self.uniforms = self.counts[live], self.uniforms[live]
        self.policy = Policy.of([row.request for row in self.rows], self.device)
        self.cache.keep(live, -(-int(self.counts.max()) // WIDTH))

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

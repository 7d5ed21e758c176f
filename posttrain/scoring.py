"""What a model gives to tokens that are there already: others' samples, and what could have been.

A continuation is a prompt and the completion after it; another model may have written it. Every
function here asks one request per continuation, all of them at once up to a bound, and answers
about the T tokens of the completion only: row t belongs to completion token t, which the model
predicts from all before it. Log-probabilities are in nats at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import tinker
import torch
from tinker import TensorData
from torch import Tensor

from posttrain.requests import item_seed, results

Continuation = tuple[list[int], list[int]]  # tokens of a prompt, tokens of the completion after it


@dataclass(frozen=True, eq=False)
class Candidates:
    """K tokens that could stand at each of T positions, with their log-probabilities."""

    tokens: Tensor  # (T, K) int64
    logprobs: Tensor  # (T, K) float32, nats


def positions(continuations: Sequence[Continuation]) -> int:
    """How many positions a forward pass over them computes: for the ledger."""
    return sum(len(prompt) + len(completion) for prompt, completion in continuations)


def token_logprobs(
    sampler: tinker.SamplingClient, continuations: Sequence[Continuation]
) -> list[Tensor]:
    """The log-probability of each completion token: a (T,) for each continuation.

    Raises:
        ValueError: a prompt or a completion is empty.
    """
    asks = [
        partial(sampler.compute_logprobs, whole, prompt_logprobs_last_n=length)
        for whole, length in map(_whole, continuations)
    ]
    return [
        torch.tensor(scores[-len(completion) :])
        for (_, completion), scores in zip(continuations, results(asks), strict=True)
    ]


def top_tokens(
    sampler: tinker.SamplingClient, continuations: Sequence[Continuation], k: int
) -> list[Candidates]:
    """The `k` most probable tokens at each completion token's place, the likeliest first.

    Raises:
        ValueError: a prompt or a completion is empty; the server has fewer than `k`.
    """
    asks = [
        partial(
            sampler.sample, whole, 1, _one_token(),
            include_prompt_logprobs=True, topk_prompt_logprobs=k, prompt_logprobs_last_n=length,
        )
        for whole, length in map(_whole, continuations)
    ]  # fmt: skip
    found = []
    for (_, completion), response in zip(continuations, results(asks), strict=True):
        rows = [row or [] for row in (response.topk_prompt_logprobs or [])[-len(completion) :]]
        if len(rows) < len(completion) or any(len(row) < k for row in rows):
            fewest = min((len(row) for row in rows), default=0)
            raise ValueError(f"asked for the {k} most probable tokens, got {fewest}: lower k")
        # Some servers append the token that is there, though it is not among the first k.
        best = [sorted(row, key=lambda entry: -entry[1])[:k] for row in rows]
        found.append(
            Candidates(
                torch.tensor([[token for token, _ in row] for row in best]),
                torch.tensor([[logprob for _, logprob in row] for row in best]),
            )
        )
    return found


def drawn_tokens(
    sampler: tinker.SamplingClient, continuations: Sequence[Continuation], n: int, seed: int
) -> list[Candidates]:
    """`n` independent draws at each completion token's place, as if the model wrote there.

    Raises:
        ValueError: a prompt or a completion is empty.
    """
    asks = [
        partial(
            sampler.sample, whole, 1, _one_token(item_seed(seed, i)), prompt_alt_tokens_k=n
        )
        for i, (whole, _) in enumerate(map(_whole, continuations))
    ]  # fmt: skip
    found = []
    for (_, completion), response in zip(continuations, results(asks), strict=True):
        drawn = response.prompt_alt_tokens
        found.append(
            Candidates(
                drawn.tokens.to_torch().long()[-len(completion) :],
                drawn.logprobs.to_torch()[-len(completion) :],
            )
        )
    return found


def logprobs_of(
    sampler: tinker.SamplingClient,
    continuations: Sequence[Continuation],
    tokens_D_T_K: Sequence[Tensor],
) -> list[Tensor]:
    """The log-probability of any tokens (T, K) at the completion tokens' places: (T, K) each.

    Raises:
        ValueError: a prompt or a completion is empty; not T rows of tokens for a completion.
    """
    asks = []
    for (prompt, completion), tokens_T_K in zip(continuations, tokens_D_T_K, strict=True):
        if len(tokens_T_K) != len(completion):
            raise ValueError(
                f"tokens for {len(tokens_T_K)} places, but the completion has {len(completion)}"
            )
        whole, _ = _whole((prompt, completion))
        # Row i of the request is about token i + 1; -1 asks for nothing.
        unasked = torch.full((len(prompt) - 1, tokens_T_K.shape[1]), -1)
        wanted = TensorData.from_torch(torch.cat([unasked, tokens_T_K.long()]))
        asks.append(partial(sampler.sample, whole, 1, _one_token(), target_prompt_logprobs=wanted))
    return [
        response.target_prompt_logprobs.to_torch()[-len(completion) :]
        for (_, completion), response in zip(continuations, results(asks), strict=True)
    ]


def _whole(continuation: Continuation) -> tuple[tinker.ModelInput, int]:
    """Prompt and completion as one input, and the completion's length."""
    prompt, completion = continuation
    if not prompt or not completion:
        raise ValueError(
            f"nothing to score: the prompt has {len(prompt)} tokens, the completion "
            f"{len(completion)}, and both need one"
        )
    return tinker.ModelInput.from_ints([*prompt, *completion]), len(completion)


def _one_token(seed: int = 0) -> tinker.SamplingParams:
    """Scoring is sampling one token that nobody reads."""
    return tinker.SamplingParams(max_tokens=1, temperature=1.0, seed=seed)

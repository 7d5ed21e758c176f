"""Scores against `transformers` on the same weights: row t belongs to completion token t."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tinker
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.connect import shipped_models
from posttrain.scoring import (
    Continuation,
    drawn_tokens,
    logprobs_of,
    positions,
    token_logprobs,
    top_tokens,
)

# Prompts and completions of different lengths, down to one token each.
PAIRS: list[Continuation] = [([5, 6, 7], [8, 9]), ([1], [2, 3, 4, 250]), ([10, 20, 30, 40], [50])]
V = json.loads((shipped_models()["posttrain/base"] / "config.json").read_text())["vocab_size"]


@pytest.fixture(scope="module")
def sampler(base_service: tinker.ServiceClient) -> tinker.SamplingClient:
    return base_service.create_sampling_client(base_model="posttrain/base").result()


@pytest.fixture(scope="module")
def exact() -> list[Tensor]:
    """(T, V) for each pair: the distribution before each completion token."""
    model = AutoModelForCausalLM.from_pretrained(
        shipped_models()["posttrain/base"], dtype=torch.float64
    )
    found = []
    for prompt, completion in PAIRS:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
        found.append(logits.log_softmax(-1)[len(prompt) - 1 : -1])
    return found


def test_each_token_has_its_own_logprob(
    sampler: tinker.SamplingClient, exact: list[Tensor]
) -> None:
    for (_, completion), found, rows in zip(
        PAIRS, token_logprobs(sampler, PAIRS), exact, strict=True
    ):
        expected = rows[torch.arange(len(completion)), completion]
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_the_likeliest_tokens_stand_where_they_would_be_written(
    sampler: tinker.SamplingClient, exact: list[Tensor]
) -> None:
    for found, rows in zip(top_tokens(sampler, PAIRS, 7), exact, strict=True):
        expected = rows.topk(7)
        assert found.tokens.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(found.logprobs.numpy(), expected.values.numpy(), atol=1e-4)


def test_the_whole_vocabulary_sums_to_one(sampler: tinker.SamplingClient) -> None:
    for found in top_tokens(sampler, PAIRS, V):
        for tokens, logprobs in zip(found.tokens, found.logprobs, strict=True):
            assert sorted(tokens.tolist()) == list(range(V))
            assert logprobs.double().exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_any_tokens_can_be_asked_for(sampler: tinker.SamplingClient, exact: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = [torch.randint(0, V, (len(c), 5), generator=generator) for _, c in PAIRS]
    for found, rows, tokens in zip(logprobs_of(sampler, PAIRS, wanted), exact, wanted, strict=True):
        np.testing.assert_allclose(found.numpy(), rows.gather(1, tokens).numpy(), atol=1e-4)


def test_draws_come_from_the_distribution_at_their_place(
    sampler: tinker.SamplingClient, exact: list[Tensor]
) -> None:
    """400 draws at each of 7 places: the mean logprob is minus the entropy there, to five standard
    errors."""
    n = 400
    for found, rows in zip(drawn_tokens(sampler, PAIRS, n, seed=3), exact, strict=True):
        np.testing.assert_allclose(
            found.logprobs.numpy(), rows.gather(1, found.tokens).numpy(), atol=1e-4
        )
        mean = (rows.exp() * rows).sum(-1)
        deviation = ((rows.exp() * rows.square()).sum(-1) - mean.square()).sqrt()
        error = (found.logprobs.double().mean(-1) - mean).abs()
        assert (error < 5 * deviation / n**0.5 + 1e-4).all()


def test_draws_follow_from_their_seed(sampler: tinker.SamplingClient) -> None:
    one, again, other = (
        [found.tokens.tolist() for found in drawn_tokens(sampler, PAIRS, 4, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_nothing_to_score_is_refused(sampler: tinker.SamplingClient) -> None:
    with pytest.raises(ValueError, match="prompt has 0 tokens, the completion 1, and both need"):
        token_logprobs(sampler, [([], [1])])
    with pytest.raises(ValueError, match="prompt has 1 tokens, the completion 0, and both need"):
        top_tokens(sampler, [([1], [])], 3)
    with pytest.raises(ValueError, match="tokens for 1 places, but the completion has 2"):
        logprobs_of(sampler, [([1], [2, 3])], [torch.tensor([[4]])])


def test_positions_are_all_tokens() -> None:
    assert positions(PAIRS) == 5 + 5 + 5

"""Tokens sampled through the SDK follow the distribution that `transformers` and the definitions of
temperature, top-k and top-p give: chi-squared against exact probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from scipy import stats
from tinker import types
from transformers import AutoModelForCausalLM

COUNT = 4000  # samples, of two tokens each
PROMPT = [11, 12, 13]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def exact(
    model: torch.nn.Module, tokens: list[int], temperature: float, top_k: int, top_p: float
) -> np.ndarray:
    """Probabilities float64 `(V,)` of the next token: softmax of the logits over the temperature;
    of these the k largest, renormalised; of these the fewest that hold at least the mass p,
    renormalised."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -1].double().numpy()
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-weights)
    if top_k > 0:
        order = order[:top_k]
    cumulative = np.cumsum(weights[order]) / weights[order].sum()
    order = order[: int(np.searchsorted(cumulative, top_p)) + 1]
    kept = np.zeros_like(weights)
    kept[order] = weights[order]
    return kept / kept.sum()


def fit(tokens: list[int], probabilities: np.ndarray) -> float:
    """The p-value of chi-squared; cells of fewer than five expected are taken together."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    expected = probabilities * len(tokens)
    often = expected >= 5
    observed = np.array([*counts[often], counts[~often].sum()], float)
    wanted = np.array([*expected[often], expected[~often].sum()])
    there = wanted > 0
    assert observed[~there].sum() == 0
    return float(stats.chisquare(observed[there], wanted[there]).pvalue)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, -1, 1.0),
        (3.0, -1, 1.0),
        (8.0, -1, 1.0),
        (6.0, 5, 1.0),
        (6.0, -1, 0.6),
        (10.0, 30, 0.8),
    ],
)
def test_samples_follow_the_exact_distribution(
    service: tinker.ServiceClient,
    model: torch.nn.Module,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampler = service.create_sampling_client(base_model="posttrain/tiny").result()
    params = types.SamplingParams(max_tokens=2, seed=1, stop=[], **asked)  # type: ignore[arg-type]
    prompt = types.ModelInput.from_ints(PROMPT)
    sequences = sampler.sample(prompt, COUNT, params).result().sequences
    first = [sequence.tokens[0] for sequence in sequences]
    probabilities = exact(model, PROMPT, temperature, top_k, top_p)
    assert set(first) <= set(np.flatnonzero(probabilities).tolist())
    assert fit(first, probabilities) > 1e-3
    common = int(np.bincount(first).argmax())
    second = [s.tokens[1] for s in sequences if s.tokens[0] == common]
    assert len(second) > 100
    assert fit(second, exact(model, [*PROMPT, common], temperature, top_k, top_p)) > 1e-3
    # What is nearly right does not pass.
    nearly = exact(model, PROMPT, temperature * 1.3, top_k, top_p)
    support = probabilities > 0
    nearly = np.where(support, nearly, 0.0) + 1e-12 * support
    assert fit(first, nearly / nearly.sum()) < 1e-6

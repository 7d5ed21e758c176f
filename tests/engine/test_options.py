"""Options of training and sampling through the SDK, against `transformers` and the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load
from tinker import types
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.conftest import KEY

MODEL = "posttrain/tiny"
TOKENS = [1, 2, 3, 4, 5]
PROMPT = types.ModelInput.from_ints(TOKENS)
POSITIONS = torch.arange(4)


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path) -> torch.Tensor:
    """Log-probabilities `(5, V)` float64 after each of TOKENS, by `transformers`."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1)


@pytest.fixture(scope="module")
def sampler(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=MODEL).result()


def train(service: tinker.ServiceClient, **more: Any) -> tinker.TrainingClient:
    return service.create_lora_training_client(MODEL, **{"rank": 4, "seed": 1, **more}).result()


def datum(**inputs: Any) -> types.Datum:
    every = {"target_tokens": TOKENS[1:], **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs=every)


def exported(policy: tinker.TrainingClient, url: str) -> dict[str, torch.Tensor]:
    """The adapter's factors as they are on the server."""
    path = (
        policy.save_weights_external(f"x{len(policy.get_tokenizer())}-{id(policy)}").result().path
    )
    urls = (
        tinker.RestClient(base_url=url, api_key=KEY).get_external_weights_urls(path).result().urls
    )
    return load(httpx.get(urls["adapter_model.safetensors"]).content)


# Losses ----------------------------------------------------------------------------------------

# log p - log q of each token: ratios inside and outside of all clipping ranges.
GAPS = np.array([0.1, -0.5, 0.6, 0.0])
ADVANTAGES = np.array([1.0, -2.0, 0.5, 1.5])
MASK = np.array([0.0, 1.0, 1.0, 1.0])
RATIO, SEQUENCE = np.exp(GAPS), math.exp(float(GAPS[1:].mean()))


def clipped(ratio: Any, low: float, high: float) -> Any:
    return -np.minimum(ratio * ADVANTAGES, np.clip(ratio, low, high) * ADVANTAGES)


POLICY: Any = {"advantages": ADVANTAGES.tolist()}
CASES: list[tuple[str, dict[str, Any], dict[str, float] | None, Any]] = [
    ("cross_entropy", {}, None, lambda lp: -lp),
    ("cross_entropy", {"weights": [1.0, -2.0, 0.0, 0.25]}, None,
     lambda lp: -lp * np.array([1.0, -2.0, 0.0, 0.25])),
    ("importance_sampling", POLICY, None, lambda lp: -RATIO * ADVANTAGES),
    ("ppo", POLICY, None, lambda lp: clipped(RATIO, 0.8, 1.2)),
    ("ppo", POLICY, {"clip_low_threshold": 0.5, "clip_high_threshold": 1.05},
     lambda lp: clipped(RATIO, 0.5, 1.05)),
    ("cispo", POLICY, None, lambda lp: -np.clip(RATIO, 0.0, 4.0) * lp * ADVANTAGES),
    ("cispo", POLICY, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
     lambda lp: -np.clip(RATIO, 0.9, 1.1) * lp * ADVANTAGES),
    ("dro", POLICY, {"beta": 0.05}, lambda lp: -(lp * ADVANTAGES - 0.025 * GAPS**2)),
    ("gspo", POLICY | {"sequence_ratio_mask": MASK.tolist()}, None,
     lambda lp: clipped(np.full(4, SEQUENCE), 1 - 3e-4, 1 + 4e-4)),
    ("gspo", POLICY | {"sequence_ratio_mask": MASK.tolist()},
     {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0},
     lambda lp: clipped(np.full(4, SEQUENCE), 0.5, 2.0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "config", "formula"), CASES)
def test_losses(
    service: tinker.ServiceClient,
    reference: torch.Tensor,
    name: str,
    inputs: dict[str, Any],
    config: dict[str, float] | None,
    formula: Any,
) -> None:
    """The sum over tokens, per-token log-probabilities, and twice the data twice the loss."""
    lp = reference[POSITIONS, TOKENS[1:]].numpy()
    if "advantages" in inputs:
        inputs = inputs | {"logprobs": (lp - GAPS).tolist()}
    policy: Any = train(service)
    output = policy.forward_backward([datum(**inputs)] * 2, name, config).result()
    assert output.metrics["loss:sum"] == pytest.approx(2 * formula(lp).sum(), rel=1e-4)
    for found in output.loss_fn_outputs:
        np.testing.assert_allclose(found["logprobs"].to_numpy(), lp, atol=1e-4)


def test_dro_needs_beta(service: tinker.ServiceClient) -> None:
    one = datum(**POLICY, logprobs=[0.0] * 4)
    with pytest.raises(tinker.RequestFailedError, match=r"needs a finite number .*'beta'"):
        train(service).forward_backward([one], "dro").result()


@pytest.mark.parametrize("width", [3, 40])
def test_soft_targets(service: tinker.ServiceClient, reference: torch.Tensor, width: int) -> None:
    """Real weights of both signs on (N, K) targets; the wide case travels as sparse rows."""
    random = np.random.default_rng(width)
    targets = torch.zeros(4, width, dtype=torch.long)
    weights = torch.zeros(4, width)
    targets[:, :3] = torch.from_numpy(random.integers(1, 260, (4, 3)))
    weights[:, :3] = torch.from_numpy(random.normal(size=(4, 3))).float()
    one = datum(target_tokens=targets, weights=weights)
    sparse = one.loss_fn_inputs["weights"].sparse_crow_indices is not None
    assert sparse == (width == 40)
    output = train(service).forward_backward([one], "cross_entropy").result()
    expected = reference[:4].gather(-1, targets)
    found = output.loss_fn_outputs[0]["logprobs"]
    assert found.shape == [4, width]
    np.testing.assert_allclose(found.to_numpy(), expected.numpy(), atol=1e-4)
    assert output.metrics["loss:sum"] == pytest.approx(
        float(-(weights.double() * expected).sum()), abs=1e-3
    )


# Optimizer and adapter -------------------------------------------------------------------------


def test_weight_decay_is_decoupled(service: tinker.ServiceClient, engine_url: str) -> None:
    """With B at zero A has no gradient: it shrinks by learning rate times decay, and only so."""
    before, policy = exported(train(service), engine_url), train(service)
    policy.forward_backward([datum()], "cross_entropy")
    policy.optim_step(types.AdamParams(learning_rate=0.01, weight_decay=0.5)).result()
    for name, factor in exported(policy, engine_url).items():
        if "lora_A" in name:
            torch.testing.assert_close(factor, before[name] * (1 - 0.005))


def test_clipping_is_reported_and_counts(service: tinker.ServiceClient) -> None:
    """The norm is that before clipping. Adam sees the clipped gradient: its memory is smaller."""
    policies, norms, after = [train(service) for _ in range(2)], [], []
    for policy, clip in zip(policies, (0.0, 1e-4), strict=True):
        policy.forward_backward([datum()], "cross_entropy")
        step = policy.optim_step(types.AdamParams(learning_rate=0.0, grad_clip_norm=clip))
        norms.append((step.result().metrics or {})["grad_norm:mean"])
        policy.forward_backward([datum()], "cross_entropy")
        policy.optim_step(types.AdamParams(learning_rate=0.01)).result()
        outputs = policy.forward([datum()], "cross_entropy").result().loss_fn_outputs
        after.append(outputs[0]["logprobs"].to_numpy())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 1e-2
    assert not np.allclose(after[0], after[1], atol=1e-4)


def test_adapters_are_as_asked_for(service: tinker.ServiceClient, engine_url: str) -> None:
    def paths(**flags: bool) -> set[str]:
        found = exported(train(service, **flags), engine_url)
        return {name.split(".lora")[0].split(".")[-1] for name in found}

    attention, dense = (
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"gate_proj", "up_proj", "down_proj"},
    )
    assert paths() == attention | dense | {"lm_head"}
    assert paths(train_mlp=False) == attention | {"lm_head"}
    assert paths(train_attn=False) == dense | {"lm_head"}
    assert paths(train_unembed=False) == attention | dense
    one, same, other = (exported(train(service, seed=s), engine_url) for s in (5, 5, 6))
    name = next(name for name in one if "lora_A" in name)
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one[name].shape[0] == 4
    assert exported(train(service, rank=7), engine_url)[name].shape[0] == 7


# Sampling --------------------------------------------------------------------------------------


def draw(
    sampler: tinker.SamplingClient, n: int = 1, **params: Any
) -> Sequence[types.SampledSequence]:
    params = {"max_tokens": 6, "stop": [], **params}
    return sampler.sample(PROMPT, n, types.SamplingParams(**params)).result().sequences


def test_greedy_top_k_and_top_p(sampler: tinker.SamplingClient, reference: torch.Tensor) -> None:
    (greedy,) = draw(sampler, temperature=0.0)
    assert greedy.tokens[0] == int(reference[4].argmax())
    for more in ({"top_k": 1}, {"top_p": 1e-6}):
        (found,) = draw(sampler, temperature=3.0, **more)
        assert found.tokens == greedy.tokens
        np.testing.assert_allclose(found.logprobs or [], greedy.logprobs or [], atol=1e-5)
    three = set(reference[4].topk(3).indices.tolist())
    drawn = {s.tokens[0] for s in draw(sampler, 200, temperature=50.0, top_k=3, max_tokens=1)}
    assert drawn == three


def test_seeds(sampler: tinker.SamplingClient) -> None:
    one, same, other = (draw(sampler, 3, temperature=5.0, seed=s) for s in (1, 1, 2))
    assert [s.tokens for s in one] == [s.tokens for s in same]
    assert [s.tokens for s in one] != [s.tokens for s in other]
    assert len({tuple(s.tokens) for s in one}) == 3


def test_stops(sampler: tinker.SamplingClient, tiny_model_dir: Path) -> None:
    """The token that completes a stop stays; stop=[] switches off even the end of text."""
    (free,) = draw(sampler, temperature=0.0, max_tokens=20)
    assert (len(free.tokens), free.stop_reason) == (20, "length")
    third = free.tokens[2]
    cut = free.tokens.index(third) + 1
    (token,) = draw(sampler, temperature=0.0, max_tokens=20, stop=[third])
    assert (token.tokens, token.stop_reason) == (free.tokens[:cut], "stop")
    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    texts = [tokenizer.decode([token]) for token in free.tokens]
    at = next(i for i, text in enumerate(texts) if text.strip() and "\ufffd" not in text)
    cut = texts.index(texts[at]) + 1
    for stop in (texts[at], [texts[at], "not there"]):
        (string,) = draw(sampler, temperature=0.0, max_tokens=20, stop=stop)
        assert (string.tokens, string.stop_reason) == (free.tokens[:cut], "stop")
    many = draw(sampler, 64, temperature=50.0, max_tokens=100, stop=None)
    ended = [s.tokens for s in many if s.stop_reason == "stop"]
    assert ended
    assert all(tokens[-1] == 256 and 256 not in tokens[:-1] for tokens in ended)
    assert any(256 in s.tokens[:-1] for s in draw(sampler, 64, temperature=50.0, max_tokens=100))


def test_most_probable_tokens(sampler: tinker.SamplingClient, reference: torch.Tensor) -> None:
    params = types.SamplingParams(max_tokens=1, temperature=0.0, stop=[])
    answer = sampler.sample(
        PROMPT, 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=3,
        topk_sample_logprobs=2, prompt_logprobs_last_n=2,
    ).result()  # fmt: skip
    rows = answer.topk_prompt_logprobs
    assert rows is not None
    assert rows[:3] == [None] * 3
    expected = reference[2:4].topk(3)
    for row, tokens, values in zip(rows[3:], expected.indices, expected.values, strict=True):
        assert [token for token, _ in row or []] == tokens.tolist()
        np.testing.assert_allclose([lp for _, lp in row or []], values, atol=1e-4)
    (best,) = answer.sequences[0].topk_logprobs or []
    assert [token for token, _ in best or []] == reference[4].topk(2).indices.tolist()


@pytest.mark.parametrize("width", [2, 50])
def test_other_tokens_at_prompt_positions(
    sampler: tinker.SamplingClient, reference: torch.Tensor, width: int
) -> None:
    """Row i scores position i + 1; -1 asks for nothing. Sparse questions get sparse answers."""
    wanted = torch.full((4, width), -1, dtype=torch.long)
    wanted[0, 0], wanted[2, 1], wanted[3, 0] = 7, 259, 0
    target = types.TensorData.from_torch_sparse(wanted, pad_value=-1)
    assert (target.sparse_crow_indices is not None) == (width == 50)
    answer = sampler.sample(
        PROMPT, 1, types.SamplingParams(max_tokens=1), target_prompt_logprobs=target
    ).result()
    assert answer.target_prompt_logprobs is not None
    assert (answer.target_prompt_logprobs.sparse_crow_indices is not None) == (width == 50)
    expected = torch.zeros(4, width, dtype=torch.float64)
    for row, column in ((0, 0), (2, 1), (3, 0)):
        expected[row, column] = reference[row, wanted[row, column]]
    found = answer.target_prompt_logprobs.to_torch().double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_alternatives_follow_the_distribution(
    sampler: tinker.SamplingClient, reference: torch.Tensor
) -> None:
    """Draws at every position, at the request's temperature, scored by the model itself."""

    def ask(k: int, **params: Any) -> tuple[torch.Tensor, torch.Tensor]:
        answer = sampler.sample(
            PROMPT, 1, types.SamplingParams(max_tokens=1, **params), prompt_alt_tokens_k=k
        ).result()
        assert answer.prompt_alt_tokens is not None
        found = answer.prompt_alt_tokens
        return found.tokens.to_torch(), found.logprobs.to_torch()

    k, temperature = 250, 30.0
    tokens, logprobs = ask(k, temperature=temperature, seed=3)
    assert tokens.shape == (4, k)
    expected = reference[:4].gather(-1, tokens)
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-4, rtol=0)
    # Chi-square over ten bins of equal probability at this temperature.
    for row in range(4):
        cumulative = (reference[row] / temperature).softmax(-1).cumsum(-1)
        bins = (cumulative * 10).ceil().clamp(max=10).long() - 1
        share = torch.zeros(10, dtype=torch.float64).index_add_(
            0, bins, (reference[row] / temperature).softmax(-1)
        )
        counts = torch.bincount(bins[tokens[row]], minlength=10).double()
        assert float(((counts - k * share) ** 2 / (k * share)).sum()) < 30  # p < 0.0005 at 9 d.f.
    assert torch.equal(
        ask(4, temperature=temperature, seed=9)[0], ask(4, temperature=temperature, seed=9)[0]
    )
    greedy, _ = ask(3, temperature=0.0)
    assert torch.equal(greedy, reference[:4].argmax(-1, keepdim=True).expand(-1, 3))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt_alt_tokens_k": 261}, "prompt_alt_tokens_k is not between 0 and 260"),
    ({"target_prompt_logprobs": torch.zeros(3, 1).long()}, r"= \(4, K\)"),
    ({"target_prompt_logprobs": torch.full((4, 1), 260)}, "tokens below 260"),
    ({"target_prompt_logprobs": torch.full((4, 1), -1)}, "must name a token"),
    ({"topk_prompt_logprobs": 261}, "not between 0 and 260"),
    ({"include_prompt_logprobs": True, "prompt_logprobs_last_n": 5}, "between 1"),
]


@pytest.mark.parametrize(("question", "complaint"), BAD)
def test_bad_questions_about_prompts(
    sampler: tinker.SamplingClient, question: dict[str, Any], complaint: str
) -> None:
    if isinstance(question.get("target_prompt_logprobs"), torch.Tensor):
        tensor = types.TensorData.from_torch(question["target_prompt_logprobs"])
        question = {"target_prompt_logprobs": tensor}
    with pytest.raises(tinker.RequestFailedError, match=complaint):
        sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=1), **question).result()


def test_clients_of_several_kinds_at_once(service: tinker.ServiceClient) -> None:
    """Four trainers with their samplers, all in flight: each sees only its own steps."""
    policies = [train(service, seed=n) for n in range(4)]
    adam = types.AdamParams(learning_rate=1e-2)
    for _ in range(3):
        futures = [p.forward_backward([datum()], "cross_entropy") for p in policies]
        futures += [p.optim_step(adam) for p in policies]  # type: ignore[misc]
        for future in futures:
            future.result()
    samplers = [p.save_weights_and_get_sampling_client() for p in policies]
    asked = [s.result().compute_logprobs(PROMPT) for s in samplers]
    for policy, answer in zip(policies, asked, strict=True):
        output = policy.forward([datum()], "cross_entropy").result().loss_fn_outputs[0]
        np.testing.assert_allclose(
            np.array(answer.result()[1:], float), output["logprobs"].to_numpy(), atol=1e-4
        )

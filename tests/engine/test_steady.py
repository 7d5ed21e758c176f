"""The same seed gives the same bits, whenever a request arrives and whoever shares the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrain.engine import sampler as sampler_module
from posttrain.engine.cache import FEWEST, SLACK
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.sample import Request, Result
from posttrain.engine.sampler import Generation
from tests.conftest import TINY


@pytest.fixture(scope="module", params=["grouped", "single"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """With two query heads a key head, and with one.

    Heads of 16, the smallest for which it holds: below, PyTorch takes another path for products
    of fewer than 400 multiplications.
    """
    torch.manual_seed(5)
    narrow = 2 if request.param == "grouped" else 4
    config = replace(TINY, num_key_value_heads=narrow, head_dim=16)
    decoder = Decoder(config).requires_grad_(False)
    decoder.model.norm.weight.mul_(0.15)
    return decoder


def finish(generation: Generation, result: Result) -> Result:
    while result.unfinished:
        generation.step()
    return result


def bits(result: Result) -> list[tuple[list[int], list[float]]]:
    return [(sample.tokens, sample.logprobs) for sample in result.samples]


@pytest.mark.parametrize("jitter", range(6))
def test_arrival_and_company_change_no_bit(
    decoder: Decoder, jitter: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(jitter)
    prompt = tuple(range(5, 5 + 3 + 7 * jitter))
    asked = Request(prompt, num_samples=3, max_tokens=70, seed=42)
    generation = Generation(decoder, None)
    alone = finish(generation, generation.admit([asked])[0])

    monkeypatch.setattr(sampler_module, "PREFILL", int(rng.integers(8, 200)))
    generation = Generation(decoder, None)

    def others(count: int) -> list[Request]:
        return [
            Request(
                tuple(map(int, rng.integers(0, 260, rng.integers(1, 50)))),
                num_samples=int(rng.integers(1, 9)),
                max_tokens=int(rng.integers(1, 60)),
                seed=int(rng.integers(99)),
            )
            for _ in range(count)
        ]

    generation.admit(others(int(rng.integers(1, 9))))
    for _ in range(int(rng.integers(0, 40))):
        generation.step()
    result = generation.admit([*others(2), asked, replace(asked, seed=7, num_samples=2)])[2]
    for _ in range(int(rng.integers(1, 30))):
        generation.step()
    generation.admit(others(3))
    assert bits(finish(generation, result)) == bits(alone)


def test_prompt_logprobs_are_the_same_bits_in_company(decoder: Decoder) -> None:
    asked = Request(tuple(range(30)), max_tokens=1, seed=0, prompt_logprobs=True)
    found = []
    for company in ([], [Request((n, 2), max_tokens=1, seed=1) for n in range(20)]):
        (result, *_) = Generation(decoder, None).admit([asked, *company])
        assert result.prompt_logprobs is not None
        found.append(result.prompt_logprobs)
    np.testing.assert_array_equal(found[0][1:], found[1][1:])


@pytest.mark.parametrize("counts", [[8] * 4, [1] * 9, [17, 1, 3], [40, *[1] * 30]])
def test_places_of_samples_hold_each_once(decoder: Decoder, counts: list[int]) -> None:
    generation = Generation(decoder, None)
    generation.admit([Request((n, n + 1), c, max_tokens=4, seed=n) for n, c in enumerate(counts)])
    cache = generation.cache
    places = np.arange(cache.rows) if cache.places is None else cache.places.numpy()
    assert len(set(places.tolist())) == sum(counts)
    np.testing.assert_array_equal(cache.uids[places // cache.fan], cache.prompts)
    least = -(-FEWEST // cache.group)
    assert len(cache.uids) * cache.fan <= max(SLACK, least) * cache.rows


def test_bfloat16_samples_and_scores_nearly_as_float32(decoder: Decoder) -> None:
    adapter = Adapter.fresh(decoder.linear_shapes(), LoraConfig(rank=4))
    for _, b in adapter.factors.values():
        b.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    packed = Packed(decoder, adapter, torch.bfloat16)
    generation = Generation(packed, None)
    (result,) = generation.admit([Request((1, 2, 3), 8, max_tokens=40, seed=3)])
    finish(generation, result)
    gaps = []
    for sample in result.samples:
        whole = torch.tensor([[1, 2, 3, *sample.tokens]])
        hidden = decoder(whole, adapter=adapter)
        logprobs = decoder.logits(hidden, adapter).log_softmax(-1)[0, 2:-1]
        expected = logprobs.gather(-1, whole[0, 3:, None])[:, 0]
        gaps.append(expected.detach() - torch.tensor(sample.logprobs))
    gap = torch.cat(gaps)
    assert float((gap.exp() - 1 - gap).mean()) < 1e-3  # KL by its k3 estimate, nats a token

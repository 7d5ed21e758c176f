"""Generation: its log-probabilities, its distribution, its stops, and its independence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from posttrain.engine import sampler as sampler_module
from posttrain.engine.datum import Datum
from posttrain.engine.draw import Policy, draw, trim
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.sample import Request, Result
from posttrain.engine.sampler import Generation
from posttrain.engine.stops import Stops, end_tokens, load_tokenizer, read_stops
from posttrain.engine.trainer import Trainer
from tests.conftest import TINY
from tests.engine.reference import merged as merged_into


@pytest.fixture(scope="module")
def decoder(tiny_model_dir: Path) -> Decoder:
    """The tiny model, made less certain: its samples then differ."""
    decoder = Decoder.load(tiny_model_dir)
    decoder.model.norm.weight.mul_(0.15)
    return decoder


def run(decoder: Decoder, *requests: Request, directory: Path | None = None) -> list[Result]:
    tokenizer = load_tokenizer(directory) if directory else None
    generation = Generation(decoder, tokenizer)
    results = generation.admit(requests)
    while any(result.unfinished for result in results):
        generation.step()
    return results


def ask(prompt: list[int], **changes: Any) -> Request:
    return Request(tuple(prompt), **{"max_tokens": 12, "seed": 1, **changes})


def reference(decoder: Decoder, tokens: list[int]) -> np.ndarray:
    """Log-probability of every token but the first, by one plain pass."""
    logits = decoder.logits(decoder(torch.tensor([tokens])))[0, :-1]
    return logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].numpy()


def test_logprobs_are_those_of_a_plain_pass_at_any_temperature(decoder: Decoder) -> None:
    requests = [
        ask([5, 6, 7], num_samples=3, temperature=0.5),
        ask([9], num_samples=2, temperature=2.0, top_k=20),
        ask(list(range(40)), num_samples=2, top_p=0.7, max_tokens=70),
        ask([5, 6, 7], temperature=0),
    ]
    for request, result in zip(requests, run(decoder, *requests), strict=True):
        for sample in result.samples:
            whole = [*request.prompt, *sample.tokens]
            found = reference(decoder, whole)[len(request.prompt) - 1 :]
            np.testing.assert_allclose(sample.logprobs, found, atol=1e-4)


def test_logprobs_are_those_of_the_trainer(decoder: Decoder) -> None:
    """On an adapted model: sampled from the merged weights, scored with the separate adapter."""
    trainer = Trainer(decoder, LoraConfig(rank=4, seed=1))
    for _, b in trainer.adapter.factors.values():
        b.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    merged = merged_into(decoder, trainer.adapter)
    (result,) = run(merged, ask([1, 2, 3], num_samples=4, max_tokens=30))
    data = []
    for sample in result.samples:
        whole = np.array([1, 2, 3, *sample.tokens])
        data.append(Datum(whole[:-1], {"target_tokens": whole[1:]}))
    output = trainer.forward_backward(data, "cross_entropy", {}, backward=False)
    for sample, found in zip(result.samples, output.logprobs, strict=True):
        np.testing.assert_allclose(sample.logprobs, found[2:], atol=1e-4)


def test_neighbours_do_not_matter(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in company, joining late, or after rows were dropped: the same tokens."""
    request = ask([5, 6, 7], num_samples=3, seed=42, max_tokens=100)
    (alone,) = run(decoder, request)
    monkeypatch.setattr(sampler_module, "PREFILL", 16)
    generation = Generation(decoder, None)
    generation.admit([ask([n, n + 1], seed=n, max_tokens=10 + n) for n in range(20)])
    for _ in range(13):
        generation.step()
    late, *_ = generation.admit([request, ask([5, 6, 7], num_samples=2, max_tokens=5)])
    while late.unfinished:
        generation.step()
    assert [s.tokens for s in late.samples] == [s.tokens for s in alone.samples]
    assert len({tuple(s.tokens) for s in alone.samples}) == 3


def test_a_sample_depends_on_its_seed_and_index_only(decoder: Decoder) -> None:
    few, many, other = (
        run(decoder, ask([1, 2], num_samples=n, seed=s))[0] for n, s in ((2, 3), (4, 3), (2, 4))
    )
    assert [s.tokens for s in few.samples] == [s.tokens for s in many.samples[:2]]
    assert few.samples[0].tokens != other.samples[0].tokens
    one, two = (run(decoder, ask([1, 2], seed=None))[0] for _ in range(2))
    assert one.samples[0].tokens != two.samples[0].tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_tokens_follow_the_distribution(decoder: Decoder, temperature: float) -> None:
    (result,) = run(
        decoder, ask([3, 4], num_samples=4000, max_tokens=1, temperature=temperature, seed=0)
    )
    logits = decoder.logits(decoder(torch.tensor([[3, 4]])))[0, -1]
    expected = (logits / temperature).softmax(-1).double().numpy() * 4000
    counts = np.bincount([s.tokens[0] for s in result.samples], minlength=TINY.vocab_size)
    often = expected >= 5
    observed = [*counts[often], counts[~often].sum()]
    wanted = np.array([*expected[often], expected[~often].sum()])
    assert stats.chisquare(observed, wanted * sum(observed) / wanted.sum()).pvalue > 1e-3


def test_top_k_and_top_p_restrict_what_can_be_drawn(decoder: Decoder) -> None:
    logits = decoder.logits(decoder(torch.tensor([[3, 4]])))[0, -1]
    order = logits.argsort(descending=True).tolist()
    mass = logits.softmax(-1)[order].cumsum(0)
    nucleus = int((mass < 0.3).sum()) + 1
    for limit, change in ((5, {"top_k": 5}), (nucleus, {"top_p": 0.3})):
        (result,) = run(decoder, ask([3, 4], num_samples=500, max_tokens=1, **change))
        assert {s.tokens[0] for s in result.samples} == set(order[:limit])


def test_trim_keeps_at_least_the_best_token() -> None:
    probabilities = torch.tensor([[0.4, 0.1, 0.5], [0.2, 0.7, 0.1]])
    kept = trim(probabilities, torch.tensor([[2], [3]]), torch.tensor([[0.9], [1e-9]]))
    assert torch.equal(kept, torch.tensor([[0.4, 0.0, 0.5], [0.0, 0.7, 0.0]]))


def test_draw_never_takes_a_token_of_probability_zero() -> None:
    logits = torch.tensor([[0.0, 0.0, -1e9], [-1e9, 0.0, -1e9]])
    policy = Policy.of([Request((1,)), Request((1,))], torch.device("cpu"))
    for uniform in (0.0, 0.4999, np.nextafter(1.0, 0.0)):
        tokens, logprobs = draw(logits, np.full(2, uniform), policy)
        assert np.isfinite(logprobs).all()
        assert tokens[1] == 1


def test_greedy_is_the_most_probable_token(decoder: Decoder) -> None:
    (result,) = run(decoder, ask([8, 9], temperature=0, num_samples=2, seed=None))
    tokens = [8, 9]
    for _ in range(12):
        tokens.append(int(decoder.logits(decoder(torch.tensor([tokens])))[0, -1].argmax()))
    assert [s.tokens for s in result.samples] == [tokens[2:]] * 2


def test_prompt_logprobs(decoder: Decoder) -> None:
    prompt = [5, 6, 7, 8]
    full, last, none = (
        run(decoder, ask(prompt, prompt_logprobs=yes, last_n=n, max_tokens=1))[0].prompt_logprobs
        for yes, n in ((True, None), (True, 2), (False, None))
    )
    assert full is not None
    assert last is not None
    assert none is None
    assert np.isnan(full[0])
    np.testing.assert_allclose(full[1:], reference(decoder, prompt), atol=1e-4)
    assert np.isnan(last[:2]).all()
    np.testing.assert_array_equal(last[2:], full[2:])


def test_most_probable_tokens(decoder: Decoder) -> None:
    prompt = [5, 6, 7, 8]
    (result,) = run(decoder, ask(prompt, topk_prompt=3, topk_sample=2, max_tokens=3))
    whole = [*prompt, *result.samples[0].tokens]
    expected = decoder.logits(decoder(torch.tensor([whole])))[0].log_softmax(-1).topk(3)
    assert (len(result.prompt_tops), len(result.samples[0].tops)) == (3, 3)
    found = [*result.prompt_tops, *result.samples[0].tops]
    for place, top in enumerate(found):
        k = len(top.tokens)
        assert k == (3 if place < 3 else 2)
        assert top.tokens.tolist() == expected.indices[place, :k].tolist()
        np.testing.assert_allclose(top.logprobs, expected.values[place, :k], atol=1e-4)


def test_stop_tokens_stay_in_the_output(decoder: Decoder) -> None:
    (free,) = run(decoder, ask([5, 6], max_tokens=40))
    tokens = free.samples[0].tokens
    stop = tokens[7]
    (result,) = run(decoder, ask([5, 6], max_tokens=40, stops=Stops(frozenset([stop]))))
    assert result.samples[0].tokens == tokens[: tokens.index(stop) + 1]
    assert result.samples[0].stopped
    assert not free.samples[0].stopped


def test_stop_strings_may_span_tokens(decoder: Decoder, tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    assert tokenizer is not None
    (free,) = run(decoder, ask([5, 6], max_tokens=60, seed=3))
    tokens = free.samples[0].tokens
    place = next(i for i in range(5, 50) if tokenizer.decode(tokens[i : i + 2]).isascii())
    text = tokenizer.decode(tokens[place : place + 2])
    (result,) = run(
        decoder,
        ask([5, 6], max_tokens=60, seed=3, stops=Stops(strings=("never", text))),
        directory=tiny_model_dir,
    )
    found = result.samples[0].tokens
    assert result.samples[0].stopped
    assert text in tokenizer.decode(found)
    assert text not in tokenizer.decode(found[:-1])
    assert found == tokens[: len(found)]


def test_reading_stops() -> None:
    eos = frozenset([7])
    assert read_stops(None, eos) == Stops(eos)
    assert read_stops([], eos) == Stops()
    assert read_stops("x", eos) == Stops(strings=("x",))
    assert read_stops(["x", "yz"], eos) == Stops(strings=("x", "yz"))
    assert read_stops([1, 2], eos) == Stops(frozenset([1, 2]))
    for wrong in ([1, "x"], 3, "", [True], {"a": 1}):
        with pytest.raises(UserError, match="stop must be"):
            read_stops(wrong, eos)


def test_end_tokens_are_found(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert end_tokens(tiny_model_dir) == {256}  # by the tokenizer's eos_token
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert end_tokens(tmp_path) == {1, 2}


def test_length_is_clipped_to_the_context(decoder: Decoder) -> None:
    limit = TINY.max_position_embeddings
    prompt = [n % 256 for n in range(limit)]
    short, full, free = run(
        decoder,
        ask(prompt[:-3], max_tokens=50),
        ask(prompt, max_tokens=50, prompt_logprobs=True),
        ask([1], max_tokens=None),
    )
    assert len(short.samples[0].tokens) == 3
    assert full.samples[0].tokens == []
    assert full.prompt_logprobs is not None
    assert np.isfinite(full.prompt_logprobs[1:]).all()
    assert len(free.samples[0].tokens) == limit - 1


@pytest.mark.parametrize(
    ("prompt", "changes", "complaint"),
    [
        ([], {}, "empty"),
        ([260], {}, "outside the vocabulary"),
        ([1] * 129, {}, "context is 128"),
        ([1], {"num_samples": 0}, "num_samples"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"top_k": 0}, "top_k"),
        ([1], {"max_tokens": -1}, "max_tokens"),
    ],
)
def test_bad_requests_are_refused(
    prompt: list[int], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        ask(prompt, **changes).check(TINY)


def test_finished_rows_leave_the_batch(decoder: Decoder) -> None:
    generation = Generation(decoder, None)
    generation.admit([ask([1], num_samples=8, max_tokens=2), ask([2], max_tokens=40)])
    for _ in range(3):
        generation.step()
    assert len(generation.rows) == 1

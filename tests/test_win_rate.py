"""Win rates on a tiny model: against recomputation from what the judge was shown."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinker

from posttrain.datums import chat_prompt, supervised_datum, token_mean
from posttrain.rollouts import kl_from, sample_groups
from posttrain.win_rate import win_rate


@dataclass(frozen=True)
class Ask:
    question: str
    solution: str = ""

    @property
    def key(self) -> str:
        return self.question


ITEMS = [Ask(f"Item {i}?") for i in range(6)]


@pytest.fixture(scope="module")
def reference(service: tinker.ServiceClient, tiny_model_dir: Path) -> tinker.SamplingClient:
    """By its directory, under which the tokenizer is found without network."""
    return service.create_sampling_client(base_model=str(tiny_model_dir)).result()


@pytest.fixture(scope="module")
def taught(
    service: tinker.ServiceClient, reference: tinker.SamplingClient, tiny_model_dir: Path
) -> tuple[tinker.SamplingClient, tinker.SamplingClient]:
    """Two policies on their way to answers of several lengths; fresh, the model says nothing."""
    policy = service.create_lora_training_client(str(tiny_model_dir), rank=4, seed=0).result()
    tokenizer = reference.get_tokenizer()
    data = token_mean(
        [
            supervised_datum(chat_prompt(tokenizer, x.question), [*b"ab" * (1 + i % 3), 256])
            for i, x in enumerate(ITEMS)
        ]
    )
    found = []
    for steps in (15, 15):
        for _ in range(steps):
            policy.forward_backward(data, "cross_entropy").result()
            policy.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        found.append(policy.save_weights_and_get_sampling_client().result())
    return found[1], found[0]


def first_place(item: Any, a: str, b: str) -> float:
    return 1.0


def shorter(item: Any, a: str, b: str) -> float:
    return 0.5 if len(a) == len(b) else float(len(a) < len(b))


def test_a_policy_against_itself_is_a_draw(reference: tinker.SamplingClient) -> None:
    """Equal weights and seeds give equal answers, whatever the judge likes."""
    found = win_rate(reference, reference, ITEMS, shorter, answers=2, max_tokens=12)
    assert found.win_rate.value == found.first_preferred == 0.5
    assert found.length_difference.value == 0
    assert found.near_pairs == found.n * found.answers == 12
    assert found.near_win_rate is not None
    assert found.near_win_rate.value == 0.5
    assert found.kl == pytest.approx(0, abs=1e-3)
    assert found.truncated == found.reference_truncated


def test_a_judge_that_likes_the_first_place_gives_a_draw_and_is_found_out(
    taught: tuple[tinker.SamplingClient, tinker.SamplingClient],
) -> None:
    found = win_rate(*taught, ITEMS, first_place, max_tokens=12)
    assert found.win_rate.value == 0.5
    assert found.first_preferred == 1.0
    assert found.unreadable == 0


def test_a_verdict_that_was_not_given_is_a_tie_and_counted(
    taught: tuple[tinker.SamplingClient, tinker.SamplingClient],
) -> None:
    """A judge that speaks of the first three items only, and then likes the first place."""

    def silent(item: Any, a: str, b: str) -> float | None:
        return 1.0 if item in ITEMS[:3] else None

    found = win_rate(*taught, ITEMS, silent, answers=2, max_tokens=12)
    assert found.unreadable == 3 * 2 * 2
    assert found.wins.tolist() == [0.5] * 6
    assert found.first_preferred == 0.75
    assert f"{found.unreadable} verdicts unreadable" in str(found)


def test_numbers_are_those_of_the_samples(
    taught: tuple[tinker.SamplingClient, tinker.SamplingClient],
) -> None:
    """The same samples drawn again, and every mean taken by hand."""
    found = win_rate(*taught, ITEMS, shorter, answers=2, max_tokens=12, seed=5, near=0.25)
    tokenizer = taught[0].get_tokenizer()
    prompts = [chat_prompt(tokenizer, x.question) for x in ITEMS]
    ours, theirs = (sample_groups(s, tokenizer, prompts, 2, max_tokens=12, seed=5) for s in taught)
    wins, near, gaps, longest = [], [], [], []
    for mine, other in zip(ours, theirs, strict=True):
        pairs = list(zip(mine, other, strict=True))
        values = [shorter(None, a.text, b.text) for a, b in pairs]
        lengths = [(len(a.tokens), len(b.tokens)) for a, b in pairs]
        close = [
            v for v, (m, n) in zip(values, lengths, strict=True) if abs(m - n) * 4 <= max(m, n)
        ]
        wins.append(sum(values) / 2)
        near += [sum(close) / len(close)] if close else []
        gaps += [m - n for m, n in lengths]
        longest += [max(pair) for pair in lengths]
    assert found.wins.tolist() == pytest.approx(wins)
    assert found.win_rate.value == pytest.approx(sum(wins) / 6)
    assert found.length_difference.value == pytest.approx(sum(gaps) / 12)
    assert found.length_difference.value < 0 < found.win_rate.value - 0.5  # brevity wins here
    assert found.near_win_rate is not None
    assert found.near_win_rate.value == pytest.approx(sum(near) / len(near))
    assert found.near_pairs == sum(abs(g) * 4 <= n for g, n in zip(gaps, longest, strict=True))
    assert found.truncated == sum(not r.finished for g in ours for r in g)
    assert found.sampled_tokens == sum(len(r.tokens) for g in [*ours, *theirs] for r in g)
    assert found.to_json()["n"] == 6
    assert found.kl == pytest.approx(kl_from(taught[1], [r for g in ours for r in g]), abs=1e-4)


def test_another_tokenizer_is_refused_before_the_first_token() -> None:
    """The stand-ins can do nothing but show a tokenizer, so any other call would fail."""
    one, other = (
        SimpleNamespace(get_vocab=lambda words=words: words, eos_token_id=0, eos_token="<end>")
        for words in ({"<end>": 0, "a": 1}, {"<end>": 0, "b": 1})
    )
    policy, stranger = (SimpleNamespace(get_tokenizer=lambda t=t: t) for t in (one, other))
    with pytest.raises(ValueError, match="'a' is 1 in one and unknown in the other"):
        win_rate(policy, stranger, ITEMS, shorter, max_tokens=4)  # type: ignore[arg-type]


def test_bad_input_is_named(reference: tinker.SamplingClient) -> None:
    with pytest.raises(ValueError, match="0 items, answers=1; both need >= 1"):
        win_rate(reference, reference, [], shorter, max_tokens=4)
    numbers = count(2)
    with pytest.raises(ValueError, match=r"between 0 and 1, got \(2, 3\) for 'Item 0\?'"):
        win_rate(reference, reference, ITEMS, lambda *_: next(numbers), max_tokens=4)

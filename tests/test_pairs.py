"""Labelled pairs, from a sampler whose every answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from posttrain.pairs import fitting, sample_pairs
from posttrain.tasks.problem import Preference


@dataclass(frozen=True)
class Ask:
    question: str
    solution: str = ""

    @property
    def key(self) -> str:
        return self.question


class Scripted:
    """Stands in for a sampling client: answers come from a table, `...` at the end is cut off."""

    def __init__(self, directory: Path, answers: dict[str, tuple[str, str]]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.answers = answers
        self.asked: list[Any] = []

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def sample(self, prompt: Any, num_samples: int, sampling_params: Any) -> Any:
        assert num_samples == 2
        self.asked.append(sampling_params)
        text = self.tokenizer.decode(prompt.to_ints())
        (texts,) = [told for question, told in self.answers.items() if question in text]
        sequences = [self.sequence(told) for told in texts]
        return SimpleNamespace(result=lambda: SimpleNamespace(sequences=sequences))

    def sequence(self, text: str) -> Any:
        whole = not text.endswith("...")
        tokens = [*self.tokenizer(text)["input_ids"], *([256] if whole else [])]
        reason = "stop" if whole else "length"
        return SimpleNamespace(tokens=tokens, logprobs=[-1.0] * len(tokens), stop_reason=reason)


ANSWERS = {
    "One?": ("short", "much longer"),
    "Two?": ("a very long answer", "brief"),
    "Three?": ("same", " same "),
    "Four?": ("whole", "cut off..."),
    "Five?": ("abc", "xyz"),
}


def shorter(item: Any, a: str, b: str, seed: int) -> bool | None:
    """As a person would who likes brevity and cannot tell texts of equal length apart."""
    assert item.question in ANSWERS
    assert seed == 7
    return None if len(a) == len(b) else len(a) < len(b)


def test_pairs_are_labelled_and_what_cannot_be_compared_is_counted(tiny_model_dir: Path) -> None:
    sampler: Any = Scripted(tiny_model_dir, ANSWERS)
    items = [Ask(question) for question in ANSWERS]
    found = sample_pairs(sampler, items, shorter, max_tokens=20, seed=7)
    assert found.preferences == [
        Preference("One?", "short", "much longer"),
        Preference("Two?", "brief", "a very long answer"),
    ]
    assert (found.truncated, found.equal, found.undecided) == (1, 1, 1)
    texts = [text for told in ANSWERS.values() for text in told]
    assert found.sampled_tokens == sum(len(text) + 1 for text in texts) - 1
    assert {(p.max_tokens, p.temperature) for p in sampler.asked} == {(20, 1.0)}
    assert len({p.seed for p in sampler.asked}) == len(ANSWERS)  # each item has its own


def test_without_a_pair_it_is_said_why(tiny_model_dir: Path) -> None:
    sampler: Any = Scripted(tiny_model_dir, ANSWERS)
    said = "2 items and no pair: 1 with an answer cut off at 20 tokens, 1 with equal answers, 0 un"
    with pytest.raises(ValueError, match=said):
        sample_pairs(sampler, [Ask("Three?"), Ask("Four?")], shorter, max_tokens=20, seed=7)
    with pytest.raises(ValueError, match="no items"):
        sample_pairs(sampler, [], shorter, max_tokens=20)


def test_pairs_that_are_too_long_are_left_out(tiny_model_dir: Path) -> None:
    """The longest answer counts, with its question: a byte is a token, and each turn has an end."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    short, long = Preference("Q?", "yes", "no"), Preference("Q?", "no", "certainly not")
    whole = len("user: Q?") + 1 + len("assistant: certainly not") + 1
    assert fitting(tokenizer, [short, long], whole) == [short, long]
    assert fitting(tokenizer, [short, long], whole - 1) == [short]
    with pytest.raises(ValueError, match="none of 2 preferences fits into max_tokens=4"):
        fitting(tokenizer, [short, long], 4)

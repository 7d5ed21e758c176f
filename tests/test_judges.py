"""A model as judge: its odds against `transformers`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.connect import shipped_models
from posttrain.judges import pairwise
from tests.test_pairs import Ask


def test_a_verdict_is_the_odds_of_the_two_letters(base_service: tinker.ServiceClient) -> None:
    """The question is spelled out here, and brought into the chat format by the tokenizer."""
    directory = shipped_models()["posttrain/base"]
    judge = pairwise(base_service.create_sampling_client(base_model="posttrain/base").result())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    letters = [tokenizer(letter)["input_ids"][0] for letter in "AB"]
    seen = []
    for a, b in (("x", "yz"), ("yz", "x"), ("", "?")):
        told = f"Request: R\n\nAnswer A: {a}\n\nAnswer B: {b}\n\nWhich answer is better, all in all"
        told = f"Here are a request and two answers to it.\n\n{told}? Say A or B, and nothing else."
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": told}], add_generation_prompt=True, return_tensors="pt",
            return_dict=False,
        )  # fmt: skip
        with torch.no_grad():
            logits = model(asked).logits[0, -1]
        expected = logits[letters].softmax(0)[0].item()
        assert judge(Ask("R"), a, b) == pytest.approx(expected, abs=1e-5)
        seen.append(round(expected, 6))
    assert len(set(seen)) == 3


def test_letters_that_are_one_token_cannot_be_told_apart() -> None:
    def encode(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [3, ord(text)]}

    sampler: Any = SimpleNamespace(get_tokenizer=lambda: encode)
    with pytest.raises(ValueError, match="A and B the same first token"):
        pairwise(sampler)

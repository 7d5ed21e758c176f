"""A model as judge: its odds against `transformers`."""

from __future__ import annotations

import math

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.connect import shipped_models
from posttrain.judges import pairwise
from posttrain.methods.reward_model import BETTER, better_prompt
from posttrain.verdicts import verdicts
from tests.test_pairs import Ask


def test_a_verdict_is_the_odds_of_the_two_letters(
    base_service: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question is spelled out here, and brought into the chat format by the tokenizer, in which
    an answer begins with a space. The base would rather say other things."""
    monkeypatch.setattr("posttrain.verdicts.READABLE", 0.0)
    directory = shipped_models()["posttrain/base"]
    judge = pairwise(base_service.create_sampling_client(base_model="posttrain/base").result())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in "AB"]
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


def test_a_judge_that_says_something_else_gives_no_verdict(
    base_service: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base_service.create_sampling_client(base_model="posttrain/base").result()
    text = better_prompt("R", "x", "yz")
    (found,), _ = verdicts(model, [text], BETTER.answers)
    mass = math.exp(found.first) + math.exp(found.second)
    judge = pairwise(model, better_prompt, BETTER.answers)
    monkeypatch.setattr("posttrain.verdicts.READABLE", mass * 1.01)
    assert judge(Ask("R"), "x", "yz") is None
    monkeypatch.setattr("posttrain.verdicts.READABLE", mass * 0.99)
    assert judge(Ask("R"), "x", "yz") == pytest.approx(1 / (1 + math.exp(-found.gap)))

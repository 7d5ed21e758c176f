"""Verdicts of one token: against `transformers` on the same weights, and by spelling."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM

from posttrain.verdicts import Verdict, question, verdict_datum, verdicts

TEXTS = ["Is it good?", "Is it?", "Is it good?"]


@pytest.fixture(scope="module")
def judge(service: tinker.ServiceClient, tiny_model_dir: Path) -> tinker.SamplingClient:
    """By its directory, under which the tokenizer is found without network."""
    return service.create_sampling_client(base_model=str(tiny_model_dir)).result()


@pytest.mark.parametrize(
    ("answers", "shared", "first", "second"),
    [
        (("yes", "no"), "", "y", "n"),
        (("yes", "yellow"), "ye", "s", "l"),
        (("good", "good!"), "good", None, "!"),  # None is the end token
    ],
)
def test_the_first_token_that_differs_decides(
    judge: tinker.SamplingClient,
    answers: tuple[str, str],
    shared: str,
    first: str | None,
    second: str,
) -> None:
    tokenizer: Any = judge.get_tokenizer()
    asked = question(tokenizer, "Is it?", answers)
    assert tokenizer.decode(asked.prompt) == f"user: Is it?<end>assistant: {shared}"
    assert tokenizer.decode([asked.first]) == ("<end>" if first is None else first)
    assert tokenizer.decode([asked.second]) == second


def test_equal_answers_decide_nothing(judge: tinker.SamplingClient) -> None:
    with pytest.raises(ValueError, match="the two answers 'yes' and 'yes' are the same tokens"):
        question(judge.get_tokenizer(), "Is it?", ("yes", "yes"))


def test_log_probabilities_are_those_of_transformers(
    judge: tinker.SamplingClient, tiny_model_dir: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64)
    found, scored = verdicts(judge, TEXTS, ("yes", "no"))
    prompts = [[*f"user: {text}".encode(), 256, *b"assistant: "] for text in TEXTS]
    tokenizer: Any = judge.get_tokenizer()
    for verdict, text, prompt in zip(found, TEXTS, prompts, strict=True):
        spelled = tokenizer(f"user: {text}<end>assistant: ")["input_ids"]
        assert len(spelled) == len(prompt)
        with torch.no_grad():
            row = model(torch.tensor([spelled])).logits[0, -1].log_softmax(-1)
        yes, no = (tokenizer(letter)["input_ids"][0] for letter in "yn")
        assert verdict.first == pytest.approx(row[yes].item(), abs=1e-4)
        assert verdict.second == pytest.approx(row[no].item(), abs=1e-4)
    assert scored == len(prompts[0]) + len(prompts[1]) + 2  # the third text is the first again


def test_training_sees_the_same_numbers(
    service: tinker.ServiceClient, judge: tinker.SamplingClient
) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()
    data = [verdict_datum(question(judge.get_tokenizer(), text, ("yes", "no"))) for text in TEXTS]
    rows: list[list[float]] = []

    def look(_: Any, logprobs_D: Any) -> tuple[torch.Tensor, dict[str, float]]:
        rows.extend(logprobs[-1].tolist() for logprobs in logprobs_D)
        return sum(logprobs[-1, 0] for logprobs in logprobs_D), {}

    policy.forward_backward_custom(data, look).result()
    found, _ = verdicts(judge, TEXTS, ("yes", "no"))
    for row, verdict in zip(rows, found, strict=True):
        assert row == pytest.approx([verdict.first, verdict.second], abs=1e-4)


@pytest.mark.parametrize(
    ("yes", "no", "readable"), [(0.3, 0.3, True), (0.3, 0.1, False), (0.001, 0.98, True)]
)
def test_a_verdict_by_hand(yes: float, no: float, readable: bool) -> None:
    verdict = Verdict(math.log(yes), math.log(no))
    assert verdict.gap == pytest.approx(math.log(yes / no))
    assert verdict.probability == pytest.approx(yes / (yes + no))
    assert verdict.readable is readable


def test_a_certain_verdict_does_not_overflow() -> None:
    assert Verdict(0.0, -2000.0).probability == 1.0
    assert Verdict(-2000.0, 0.0).probability == 0.0

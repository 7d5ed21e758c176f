"""The shipped base model: its format, and the gates that its weights must pass."""

import json

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.connect import shipped_models
from posttrain.tasks import math
from tools.gates import GATES, measure

BASE = shipped_models()["posttrain/base"]


@pytest.fixture(scope="module")
def values(base_service: tinker.ServiceClient) -> dict[str, float]:
    """Measured on problems of another seed than the card's."""
    sampler = base_service.create_sampling_client(base_model="posttrain/base").result()
    return measure(sampler, math.problems("test", 150, seed=1))


@pytest.mark.parametrize("gate", GATES)
def test_gate(values: dict[str, float], gate: str) -> None:
    low, high, _ = GATES[gate]
    assert low <= values[gate] <= high


def test_it_is_a_hugging_face_model_of_one_to_four_million_parameters() -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert model.dtype == torch.bfloat16
    count = sum(p.numel() for p in model.parameters())
    assert 1e6 <= count <= 4e6
    assert count == json.loads((BASE / "training.json").read_text())["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


def test_the_card_shows_the_recorded_gates() -> None:
    card = (BASE / "README.md").read_text()
    for name, value in json.loads((BASE / "gates.json").read_text())["values"].items():
        assert f"| {name} | {value:.3f} |" in card

"""The shipped base model: its format, and what its card says of the gates, measured again."""

import json
from typing import Any

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.connect import shipped_models
from posttrain.stats import Estimate
from tools.gates.card import card
from tools.gates.groups import GATES, GROUPS

BASE = shipped_models()["posttrain/base"]
N = 16  # items of each task; enough to contradict a verdict that is plainly wrong


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((BASE / "gates.json").read_text())["gates"]
    return stored


@pytest.fixture(scope="module")
def values(base_service: tinker.ServiceClient) -> dict[str, Estimate]:
    """Measured on items of another seed than the card's."""
    sampler = base_service.create_sampling_client(base_model="posttrain/base").result()
    return {name: value for group in GROUPS for name, value in group(sampler, N, 1).items()}


@pytest.mark.parametrize("name", GATES)
def test_the_verdict_is_what_is_measured(
    recorded: dict[str, Any], values: dict[str, Estimate], name: str
) -> None:
    row, gate, again = recorded[name], GATES[name], values[name]
    assert (row["least"], row["most"]) == (gate.least, gate.most)  # no gate is moved silently
    assert row["met"] == gate.met(row["value"])
    assert not gate.contradicts(row["met"], again)
    width = (again.high - again.low + row["high"] - row["low"]) / 2
    assert abs(again.value - row["value"]) <= max(2 * width, 0.02)


def test_what_is_not_met_has_a_reason(recorded: dict[str, Any]) -> None:
    assert recorded.keys() == GATES.keys()
    for row in recorded.values():
        assert row["met"] == ("reason" not in row)


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


def test_the_card_is_what_the_files_say() -> None:
    training, gates = (
        json.loads((BASE / name).read_text()) for name in ("training.json", "gates.json")
    )
    assert (BASE / "README.md").read_text() == card(training, GATES, gates)

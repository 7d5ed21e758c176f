"""The shipped models: their format, and what their cards say of the gates, measured again."""

import json
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.connect import shipped_models
from posttrain.evals import evaluate
from posttrain.methods.rubric_judges import language_judge
from posttrain.stats import Estimate
from posttrain.tasks import math
from tools.gates import judge, teacher
from tools.gates.card import card
from tools.gates.gate import Gate
from tools.gates.groups import GATES, measure

BASE, TEACHER, JUDGE = (
    shipped_models()[f"posttrain/{name}"] for name in ("base", "teacher", "judge")
)
N = 16  # items of each task; enough to contradict a verdict that is plainly wrong


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((BASE / "gates.json").read_text())["gates"]
    return stored


@pytest.fixture(scope="module")
def values(base_service: tinker.ServiceClient) -> dict[str, Estimate]:
    """Measured on items of another seed than the card's."""
    groups = measure(base_service, "posttrain/base", N, 1, requests=2 * N)
    return {name: value for group in groups for name, value in group.items()}


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


def written(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text())


@pytest.mark.parametrize(
    ("directory", "least", "most"),
    [(BASE, 1e6, 4e6), (TEACHER, 4e6, 12e6), (JUDGE, 4e6, 12e6)],
    ids=["base", "teacher", "judge"],
)
def test_it_is_a_hugging_face_model_of_its_size(directory: Path, least: float, most: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    count = sum(p.numel() for p in model.parameters())
    assert least <= count <= most
    assert count == written(directory, "training.json")["parameters"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("directory", "gates"),
    [(BASE, GATES), (TEACHER, teacher.GATES), (JUDGE, judge.GATES)],
    ids=["base", "teacher", "judge"],
)
def test_the_card_is_what_the_files_say(directory: Path, gates: dict[str, Gate]) -> None:
    """And that the teacher is better at every task than the base, with the exceptions it names."""
    training, found = (written(directory, name) for name in ("training.json", "gates.json"))
    extra = ""
    if directory == TEACHER:
        extra = teacher.beside(TEACHER, BASE)
    if directory == JUDGE:
        extra = judge.section(written(JUDGE, judge.FOUND))
    assert (directory / "README.md").read_text() == card(training, gates, found, extra)


def test_the_shipped_models_are_small_together() -> None:
    sizes = [path.stat().st_size for path in BASE.parent.rglob("*") if path.is_file()]
    assert sum(sizes) < 60e6


@pytest.mark.parametrize("directory", [TEACHER, JUDGE], ids=["teacher", "judge"])
def test_all_share_the_layout_of_the_base(directory: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        assert (directory / name).read_text() == (BASE / name).read_text()


def test_the_teacher_meets_its_gates(base_service: tinker.ServiceClient) -> None:
    """Two of them measured again, on few items; what it beats the student by is in its card."""
    recorded = written(TEACHER, "gates.json")["gates"]
    assert recorded.keys() == teacher.GATES.keys()
    for name, row in recorded.items():
        gate = teacher.GATES[name]
        assert (row["least"], row["most"]) == (gate.least, gate.most)
        assert row["met"] == gate.met(row["value"]) == ("reason" not in row)
    sampler = base_service.create_sampling_client(base_model="posttrain/teacher").result()
    score = evaluate(sampler, math.problems("test", 40, seed=1), 4, max_tokens=200)
    assert teacher.GATES["math: pass@1"].met(score.pass_at_1.value)
    assert teacher.GATES["well-formed in chat"].met(score.well_formed)
    again = teacher.calibration(TEACHER).value
    assert again == pytest.approx(recorded["calibration"]["value"], abs=1e-4)


def test_the_judge_errs_as_its_card_says(base_service: tinker.ServiceClient) -> None:
    """Agreement on fewer judgements, of another seed."""
    recorded = written(JUDGE, "gates.json")["gates"]
    assert recorded.keys() == judge.GATES.keys()
    for name, row in recorded.items():
        gate = judge.GATES[name]
        assert (row["least"], row["most"]) == (gate.least, gate.most)
        assert row["met"] == gate.met(row["value"]) == ("reason" not in row)
    model, base = (
        base_service.create_sampling_client(base_model=f"posttrain/{name}").result()
        for name in ("judge", "base")
    )
    values, tables = judge.measure(language_judge(model), base, 120, seed=1)
    for name, again in values.items():
        row = recorded[name]
        width = (again.high - again.low + row["high"] - row["low"]) / 2
        assert abs(again.value - row["value"]) <= max(2 * width, 0.02)
    assert tables["tricks"]["nothing"].false_credit > 0  # imperfect, on purpose

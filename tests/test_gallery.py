"""The page of the tasks is up to date, and every exhibit shows items that its checker confirms."""

import json
from pathlib import Path

import pytest

from posttrain.connect import shipped_models
from posttrain.lab.gallery import GALLERY, SCORES, scores, write
from posttrain.tasks import math
from tests.test_cli import posttrain

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_code_shows(tmp_path: Path) -> None:
    write(tmp_path / "tasks.md")
    assert (tmp_path / "tasks.md").read_text() == (ROOT / "docs/tasks.md").read_text()


@pytest.mark.parametrize("name", GALLERY)
def test_every_exhibit_has_a_module_and_items_for_every_seed(name: str) -> None:
    exhibit = GALLERY[name]
    for module in exhibit.module.split(", "):
        assert (ROOT / module).exists()
    texts = {exhibit.text(seed) for seed in range(5)}
    assert len(texts) == 5


def test_the_answers_of_the_math_exhibit_are_right_and_wrong() -> None:
    first, second, wrong = GALLERY["math"].show(0)
    for text, split in ((first, "train"), (second, "ood")):
        assert math.problem(split, 0).grade(text).correct
    assert not math.problem("ood", 0).grade(wrong).correct


@pytest.mark.parametrize("name", GALLERY)
def test_the_base_was_measured_on_every_task(name: str) -> None:
    stored = json.loads((shipped_models()["posttrain/base"] / SCORES).read_text())["tasks"][name]
    shown = {measure: row["posttrain/base"] for measure, row in scores(name).items()}
    assert {measure: value.to_json() for measure, value in shown.items()} == stored
    assert all(value.low <= value.value <= value.high for value in shown.values())


def test_the_command_shows_an_exhibit_with_scores_or_lists_all() -> None:
    shown = posttrain("tasks", "stories").stdout
    (quality,) = scores("stories").values()
    assert "hidden quality" in shown
    assert str(quality["posttrain/base"]) in shown
    listed = posttrain("tasks").stdout
    assert all(name in listed for name in GALLERY)

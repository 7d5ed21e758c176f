"""The page of the tasks is up to date, and every exhibit shows items that its checker confirms."""

from pathlib import Path

import pytest

from posttrain.lab.gallery import GALLERY, write
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


def test_the_command_shows_an_exhibit_or_lists_all() -> None:
    assert "hidden quality" in posttrain("tasks", "stories").stdout
    listed = posttrain("tasks").stdout
    assert all(name in listed for name in GALLERY)

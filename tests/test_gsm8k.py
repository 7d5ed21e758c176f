import json
from pathlib import Path

import pytest

from posttrain.tasks import gsm8k

ROWS = [
    {
        "question": "A hen lays 3 eggs a day. How many in 14 days?",
        "answer": "She lays 3*14=<<3*14=42>>42 eggs.\n#### 42",
    },
    {"question": "What do 1,000 pens at $1.25 cost?", "answer": "Multiply.\n#### 1,250"},
]


@pytest.fixture
def local_file(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_local_file_of_the_same_schema_loads_through_datasets(local_file: Path) -> None:
    first, second = gsm8k.load("test", path=local_file)
    assert first.answer == 42
    assert second.answer == 1250
    assert first.solution == "She lays 3*14=42 eggs.\nThe answer is 42."
    assert first.grade(first.solution).correct
    assert len(gsm8k.load("train", 1, path=local_file)) == 1


@pytest.mark.parametrize(
    ("text", "correct", "parsed"),
    [
        ("so 42 eggs.\n#### 42", True, True),
        ("The answer is $42.", True, True),
        ("The answer is 42.0", True, True),
        ("The answer is 41. No: The answer is 42.", True, True),
        ("The answer is 420.", False, True),
        ("42", False, False),
        ("", False, False),
    ],
)
def test_grading_fails_closed(local_file: Path, text: str, correct: bool, parsed: bool) -> None:
    grade = gsm8k.load("test", 1, path=local_file)[0].grade(text)
    assert (grade.correct, grade.parsed) == (correct, parsed)


def test_bad_rows_and_splits_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "no mark"}) + "\n")
    with pytest.raises(ValueError, match="row 0: the answer does not end in"):
        gsm8k.load("test", path=path)
    path.write_text(json.dumps({"question": "?", "solution": "#### 4"}) + "\n")
    with pytest.raises(ValueError, match="no column 'answer'"):
        gsm8k.load("test", path=path)
    with pytest.raises(ValueError, match="known: train, validation, test"):
        gsm8k.load("dev", path=path)
    with pytest.raises(FileNotFoundError):
        gsm8k.load("test", path=tmp_path / "none.jsonl")

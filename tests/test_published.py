import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from posttrain.tasks import hh_rlhf
from posttrain.tasks.dialogues import Turn, as_question, question_and_answer, read_turns
from posttrain.tasks.draws import split_by_hash
from posttrain.tasks.jsonl import read_rows
from posttrain.tasks.published import Source

SOURCE = Source(
    hub="someone/something",
    columns={"text": str},
    parts={"train": "train", "validation": "train", "test": "test"},
    subject=lambda row: row["text"].split()[0],
)
ROWS = [{"text": f"subject{i // 2} row{i}"} for i in range(1000)]


def text_of(row: dict[str, Any], place: str) -> str | None:
    return row["text"] or None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub with one dataset; what was asked of it."""
    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, data_dir: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append({"name": name, "data_dir": data_dir, "split": split})
        return datasets.Dataset.from_list(ROWS if split == "train" else ROWS[:7])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_published_part_is_divided_by_subject(hub: list[dict[str, Any]]) -> None:
    train = SOURCE.load(text_of, "train")
    validation = SOURCE.load(text_of, "validation")
    assert sorted(train + validation) == sorted(row["text"] for row in ROWS)
    expected = {f"subject{i}" for i in range(500) if split_by_hash(f"subject{i}") == "validation"}
    assert {text.split()[0] for text in validation} == expected
    assert 30 < len(expected) < 70
    assert not expected & {text.split()[0] for text in train}
    assert sorted(SOURCE.load(text_of, "test")) == sorted(row["text"] for row in ROWS[:7])
    assert [ask["split"] for ask in hub] == ["train", "train", "test"]


def test_one_part_makes_three_splits(hub: list[dict[str, Any]]) -> None:
    parts = {"train": "train", "validation": "train", "test": "train"}
    source = Source(SOURCE.hub, SOURCE.columns, parts, SOURCE.subject)
    found = {split: set(source.load(text_of, split)) for split in parts}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 1000
    assert min(map(len, found.values())) > 50


def test_rows_come_in_a_fixed_random_order(hub: list[dict[str, Any]]) -> None:
    first = SOURCE.load(text_of, "train", 50)
    assert first == SOURCE.load(text_of, "train")[:50]
    rows = [int(text.rpartition("row")[2]) for text in first]
    assert max(rows) > 800
    assert min(rows) < 200
    assert rows != sorted(rows)


def test_unusable_rows_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": ""}\n{"text": "a"}\n\n{"text": ""}\n{"text": "b"}\n')
    with caplog.at_level(logging.WARNING):
        assert SOURCE.load(text_of, "train", path=path) == ["a", "b"]
    assert "left out 2 rows" in caplog.text
    assert SOURCE.load(text_of, "train", 1, path=path) == ["a"]
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl is empty: 1 rows, and none of them usable"):
        SOURCE.load(text_of, "train", path=path)


def test_bad_requests_are_refused(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; known: train, validation, test"):
        SOURCE.load(text_of, "dev")
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        SOURCE.load(text_of, "train", 0)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SOURCE.load(text_of, "train", path=tmp_path / "none.jsonl")
    other = Source("someone/something", {"words": str}, SOURCE.parts, SOURCE.subject)
    message = r"someone/something train \d+: no column 'words'; expected words \(str\)"
    with pytest.raises(ValueError, match=message):
        other.load(text_of, "train")


def test_a_subset_is_a_folder_of_the_hub(
    hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Hi\n\nAssistant: B"}
    monkeypatch.setattr(f"{__name__}.ROWS", [row])
    assert len(hh_rlhf.load("test", subset="helpful-base")) == 1
    assert hub == [{"name": "Anthropic/hh-rlhf", "data_dir": "helpful-base", "split": "test"}]


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    odd = "one\u2028two\x85three"
    path.write_bytes(json.dumps({"text": odd}, ensure_ascii=False).encode() + b"\r\n\n")
    assert read_rows(path, {"text": str}) == [(f"{path}:1", {"text": odd})]
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not JSON: .*expected text \(str\)"):
        read_rows(path, {"text": str})


def test_one_turn_is_the_question_and_several_are_a_transcript() -> None:
    ask, answer = Turn("user", "Why?"), Turn("assistant", "Because.")
    assert as_question([ask]) == "Why?"
    assert as_question([Turn("system", "Be brief."), ask]) == "Be brief.\n\nWhy?"
    assert as_question([Turn("system", ""), ask]) == "Why?"
    turns = [Turn("system", "Be brief."), ask, answer, ask, answer]
    assert question_and_answer(turns, "here") == (
        "Be brief.\n\nUser: Why?\n\nAssistant: Because.\n\nUser: Why?",
        "Because.",
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "here: an empty list instead of messages; expected a list of objects with role"),
        ("text", "here: str instead of messages"),
        (["text"], "here: message 0 is no message; expected"),
        ([{"role": "user"}], "here: message 0 is no message"),
        ([{"role": "user", "content": None}], "here: message 0 is no message"),
        ([{"role": "bot", "content": ""}], "unknown role 'bot'; known: system, user, human"),
    ],
)
def test_malformed_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_turns(messages, "here")

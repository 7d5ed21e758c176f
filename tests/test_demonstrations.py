import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.tasks import no_robots, openthoughts
from posttrain.tasks.problem import Demonstration


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"content": text, "role": role} for role, text in turns]


ROBOTS = {
    "prompt": "Rewrite this politely: Go.",
    "prompt_id": "f00",
    "messages": messages(("user", "Rewrite this politely: Go."), ("assistant", "Please go.\n")),
    "category": "Rewrite",
}
CHAT = {
    "prompt": "Clark is a pirate.",
    "prompt_id": "f01",
    "messages": messages(
        ("system", "Clark is a pirate."),
        ("user", "Hi"),
        ("assistant", "Ahoy!"),
        ("user", "Where to?"),
        ("assistant", "West."),
    ),
    "category": "Chat",
}
ANSWER = "<|begin_of_thought|>\n\n2+2\n\n<|end_of_thought|>\n\n<|begin_of_solution|>4"
THOUGHT = {
    "system": "Think in two sections.",
    "conversations": [
        {"from": "user", "value": "Return your final response: 2+2?"},
        {"from": "assistant", "value": ANSWER},
    ],
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_no_robots_rows_are_demonstrations_of_the_last_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ROBOTS, CHAT)
    first, second = no_robots.load("train", path=path)
    assert first == Demonstration("Rewrite this politely: Go.", "Please go.")
    assert second == Demonstration(
        "Clark is a pirate.\n\nUser: Hi\n\nAssistant: Ahoy!\n\nUser: Where to?", "West."
    )
    assert no_robots.load("test", 1, path=path) == [first]


def test_openthoughts_rows_are_demonstrations(tmp_path: Path) -> None:
    path = write(tmp_path / "o.jsonl", THOUGHT)
    question = "Return your final response: 2+2?"
    assert openthoughts.load("train", path=path) == [
        Demonstration(f"Think in two sections.\n\n{question}", ANSWER)
    ]
    assert openthoughts.load("test", path=path, system=False) == [Demonstration(question, ANSWER)]


def test_rows_without_question_or_answer_are_left_out() -> None:
    empty = messages(("user", "Hi"), ("assistant", " "))
    assert no_robots.from_row(ROBOTS | {"messages": empty}) is None
    turns = [{"from": "user", "value": ""}, {"from": "assistant", "value": "4"}]
    assert openthoughts.from_row(THOUGHT | {"conversations": turns}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": None}, r"bad.jsonl:2: 'messages' is NoneType; expected prompt \(str\), mess"),
        ({"messages": []}, "bad.jsonl:2: an empty list instead of messages; expected a list of"),
        ({"messages": messages(("user", "Hi"))}, "bad.jsonl:2: the last turns are user; expected"),
        ({"messages": messages(("tool", "Hi"))}, "bad.jsonl:2: message 0 has unknown role 'tool'"),
    ],
)
def test_malformed_no_robots_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        no_robots.load("train", path=write(tmp_path / "bad.jsonl", ROBOTS, ROBOTS | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": None}, r"bad.jsonl:2: 'system' is NoneType; expected system \(str\), conver"),
        ({"conversations": []}, "bad.jsonl:2: an empty list instead of messages; .* value"),
        ({"conversations": [{"role": "user", "content": ""}]}, "message 0 is no message; .* from"),
        ({"conversations": [{"from": "user", "value": "a"}]}, "the last turns are system, user"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "unknown from 'bot'; known: system"),
    ],
)
def test_malformed_openthoughts_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.jsonl", THOUGHT, THOUGHT | change)
    with pytest.raises(ValueError, match=message):
        openthoughts.load("train", path=path)


def test_the_split_follows_from_the_first_turn() -> None:
    assert openthoughts.opening(THOUGHT) == "Return your final response: 2+2?"
    assert openthoughts.opening({"conversations": []}) == ""
    assert openthoughts.opening({"conversations": ["text"]}) == ""


@pytest.mark.parametrize("task", [no_robots, openthoughts])
def test_bad_requests_are_refused(tmp_path: Path, task: Any) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; known: train, validation, test"):
        task.load("dev")
    with pytest.raises(ValueError, match="is empty; expected"):
        task.load("train", path=write(tmp_path / "empty.jsonl"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        task.load("train", path=tmp_path / "none.jsonl")

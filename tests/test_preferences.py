import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.tasks import hh_rlhf, ultrafeedback
from posttrain.tasks.problem import Preference


def said(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"content": text, "role": roles[i % 2]} for i, text in enumerate(texts)]


ULTRA = {
    "prompt": "Name a prime.",
    "prompt_id": "ab12",
    "chosen": said("Name a prime.", "Seven."),
    "rejected": said("Name a prime.", "Eight. "),
    "messages": said("Name a prime.", "Seven."),
    "score_chosen": 8.5,
    "score_rejected": 2.0,
}
ULTRA_PAIR = Preference("Name a prime.", "Seven.", "Eight.")
HH_PROMPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a prime.\n\nAssistant:"
HH = {
    "chosen": f"{HH_PROMPT} Seven.\n\nOr two.",
    "rejected": f"{HH_PROMPT} Eight.",
}
HH_PAIR = Preference(
    "User: Hi\n\nAssistant: Hello.\n\nUser: Name a prime.", "Seven.\n\nOr two.", "Eight."
)
SHORT = {"chosen": "\n\nHuman: Why?\n\nAssistant: A", "rejected": "\n\nHuman: Why?\n\nAssistant: B"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_ultrafeedback_rows_are_pairs(tmp_path: Path) -> None:
    dialogue = ULTRA | {
        "chosen": said("Hi", "Hello", "Why?", "A"),
        "rejected": said("Hi", "Hello", "Why?", "B"),
    }
    pairs = ultrafeedback.load("train", path=write(tmp_path / "u.jsonl", ULTRA, dialogue))
    assert pairs == [
        ULTRA_PAIR,
        Preference("User: Hi\n\nAssistant: Hello\n\nUser: Why?", "A", "B"),
    ]
    assert ultrafeedback.load("test", 1, path=tmp_path / "u.jsonl") == [ULTRA_PAIR]


def test_hh_prompts_are_the_common_turns(tmp_path: Path) -> None:
    pairs = hh_rlhf.load("train", path=write(tmp_path / "h.jsonl", HH, SHORT))
    assert pairs == [HH_PAIR, Preference("Why?", "A", "B")]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: A "),  # equal
        ("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant:"),  # empty
        ("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: P\n\nAssistant: B"),  # other prompts
        # They part before the last answer, at the same and at another depth.
        (
            "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: C",
            "\n\nHuman: Q\n\nAssistant: B\n\nHuman: R\n\nAssistant: D",
        ),
        (
            "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: C",
            "\n\nHuman: Q\n\nAssistant: B",
        ),
        ("\n\nHuman: Q\n\nHuman: R", "\n\nHuman: Q\n\nHuman: S"),  # no answer
        ("\n\nHuman:\n\nAssistant: A", "\n\nHuman:\n\nAssistant: B"),  # no question
        ("\n\nAssistant: A", "\n\nAssistant: B"),
    ],
)
def test_hh_rows_that_compare_no_two_answers_are_left_out(chosen: str, rejected: str) -> None:
    assert hh_rlhf.from_row({"chosen": chosen, "rejected": rejected}) is None


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (said("Q", "A"), said("Q", " A")),
        (said("Q", ""), said("Q", "A")),
        (said("", "A"), said("", "B")),
    ],
)
def test_ultrafeedback_rows_without_a_pair_are_left_out(chosen: Any, rejected: Any) -> None:
    assert ultrafeedback.from_row(ULTRA | {"chosen": chosen, "rejected": rejected}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"bad.jsonl:2: 'prompt' is NoneType; expected prompt \(str\), chosen"),
        ({"chosen": "text"}, "bad.jsonl:2: 'chosen' is str"),
        ({"chosen": []}, "bad.jsonl:2: chosen: an empty list instead of messages"),
        ({"rejected": [3]}, "bad.jsonl:2: rejected: message 0 is no message"),
        ({"chosen": said("Q")}, "bad.jsonl:2: the last turns are user; expected user, assistant"),
        ({"rejected": said("P", "A")}, "bad.jsonl:2: chosen and rejected differ before the last"),
    ],
)
def test_malformed_ultrafeedback_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.jsonl", ULTRA, ULTRA | change)
    with pytest.raises(ValueError, match=message):
        ultrafeedback.load("train", path=path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": HH["chosen"]}, r"bad.jsonl:2: no column 'rejected'; expected chosen \(str\)"),
        (HH | {"rejected": "Hello"}, "bad.jsonl:2: rejected begins with 'Hello'; expected"),
        (HH | {"chosen": "x" + HH["chosen"]}, "bad.jsonl:2: chosen begins with"),
        (HH | {"chosen": ""}, "bad.jsonl:2: chosen begins with ''; expected"),
    ],
)
def test_malformed_hh_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hh_rlhf.load("train", path=write(tmp_path / "bad.jsonl", HH, row))


@pytest.mark.parametrize("task", [ultrafeedback, hh_rlhf])
def test_bad_requests_are_refused(tmp_path: Path, task: Any) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; known: train, validation, test"):
        task.load("dev", path=write(tmp_path / "a.jsonl", ULTRA))
    with pytest.raises(ValueError, match="is empty; expected"):
        task.load("train", path=write(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match="unknown subset 'helpful'; known: harmless-base"):
        hh_rlhf.load("train", subset="helpful")


def test_prompts_are_items_each_once(tmp_path: Path) -> None:
    other = ULTRA | {"chosen": said("Why?", "A"), "rejected": said("Why?", "B")}
    again = ULTRA | {"chosen": said("Name a prime.", "Two.")}
    path = write(tmp_path / "u.jsonl", ULTRA, other, again)
    found = ultrafeedback.prompts(ultrafeedback.load("train", path=path))
    assert [item.question for item in found] == ["Name a prime.", "Why?"]
    assert {item.solution for item in found} <= {"Seven.", "Two.", "A"}
    assert len({item.key for item in found}) == 2
    assert found[0].key == ultrafeedback.Prompt("Name a prime.", "other").key

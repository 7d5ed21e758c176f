"""No Robots (HuggingFaceH4/no_robots): 10,000 instructions and answers, written by people.

After the instruction data of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155). A row has
`messages` with `role` and `content`. A row of several turns is one demonstration, of the last
answer: so each row counts once, and no question is another one's beginning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.tasks.dialogues import question_and_answer, read_turns
from posttrain.tasks.problem import Demonstration
from posttrain.tasks.published import Source

SOURCE = Source(
    hub="HuggingFaceH4/no_robots",
    columns={"prompt": str, "messages": list},
    parts={"train": "train", "validation": "train", "test": "test"},
    subject=lambda row: row["prompt"],
)


def from_row(row: dict[str, Any], place: str = "row") -> Demonstration | None:
    """A row's last answer, and all before it; None where question or answer is empty.

    Raises:
        ValueError: the messages are not of the expected form.
    """
    question, answer = question_and_answer(read_turns(row["messages"], place), place)
    return Demonstration(question, answer) if question and answer else None


def load(
    split: str, n: int | None = None, *, path: str | Path | None = None
) -> list[Demonstration]:
    """The first `n` demonstrations of a split.

    `test` is the published one; `validation` is a tenth of the published training set, `train` the
    rest, and no prompt is in both.

    Args:
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.

    Raises:
        ValueError: an unknown split, an empty one, or rows that do not follow the schema; the text
            names file and line.
        FileNotFoundError: `path` does not exist.
    """
    return SOURCE.load(from_row, split, n, path=path)

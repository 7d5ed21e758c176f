"""OpenThoughts (Guha et al. 2025, arXiv:2506.04178): long reasoning, to distil from.

114,000 questions on mathematics, science, code and puzzles, answered by DeepSeek-R1. A row has
`system`, and `conversations`, a list of turns with `from` and `value`. The system prompt, the same
in all rows, asks for the marks `<|begin_of_thought|>` and `<|begin_of_solution|>` that the answers
carry. A row of several turns is one demonstration, of the last answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.tasks.dialogues import Turn, question_and_answer, read_turns
from posttrain.tasks.problem import Demonstration
from posttrain.tasks.published import Source


def opening(row: dict[str, Any]) -> str:
    """The first turn, from which a row's split follows, whatever else the row holds."""
    first = row["conversations"][0] if row["conversations"] else None
    return str(first.get("value")) if isinstance(first, dict) else ""


SOURCE = Source(
    hub="open-thoughts/OpenThoughts-114k",
    columns={"system": str, "conversations": list},
    parts={"train": "train", "validation": "train", "test": "train"},
    subject=opening,
)


def from_row(
    row: dict[str, Any], place: str = "row", *, system: bool = True
) -> Demonstration | None:
    """A row's last answer, and all before it; None where question or answer is empty.

    Raises:
        ValueError: the conversation is not of the expected form.
    """
    turns = read_turns(row["conversations"], place, role="from", text="value")
    if system:
        turns = [Turn("system", row["system"].strip()), *turns]
    question, answer = question_and_answer(turns, place)
    return Demonstration(question, answer) if turns[-2].text and answer else None


def load(
    split: str, n: int | None = None, *, system: bool = True, path: str | Path | None = None
) -> list[Demonstration]:
    """The first `n` demonstrations of a split.

    Only a training set was published: a tenth of it is `validation`, a tenth `test`, and no opening
    question is in two of them.

    Args:
        system: begin each question with the system prompt. Without it, the student learns to think
            aloud whoever asks.
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.

    Raises:
        ValueError: an unknown split, an empty one, or rows that do not follow the schema; the text
            names file and line.
        FileNotFoundError: `path` does not exist.
    """
    return SOURCE.load(lambda row, place: from_row(row, place, system=system), split, n, path=path)

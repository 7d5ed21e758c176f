"""HH-RLHF (Bai et al. 2022, arXiv:2204.05862): preferences for helpful and harmless answers.

A row has `chosen` and `rejected`, two transcripts of turns that begin with `\\n\\nHuman:` or
`\\n\\nAssistant:`. The turns that both begin with are the prompt, and what is left is one answer
each. In a few rows the two part earlier than at the last answer, or an answer is empty: they
compare no two answers to one question, and are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posttrain.tasks.dialogues import Turn, as_question
from posttrain.tasks.problem import Preference
from posttrain.tasks.published import Source

MARK = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
SOURCE = Source(
    hub="Anthropic/hh-rlhf",
    columns={"chosen": str, "rejected": str},
    parts={"train": "train", "validation": "train", "test": "test"},
    # Dialogues that begin alike grew out of each other.
    subject=lambda row: row["chosen"].partition("\n\nAssistant:")[0],
)


def from_row(row: dict[str, Any], place: str = "row") -> Preference | None:
    """A row's pair; None where the two transcripts compare no two answers to one question.

    Raises:
        ValueError: a transcript does not begin with a turn.
    """
    chosen = read_transcript(row["chosen"], f"{place}: chosen")
    rejected = read_transcript(row["rejected"], f"{place}: rejected")
    prompt, answers = chosen[:-1], (chosen[-1], rejected[-1])
    if prompt != rejected[:-1] or not prompt or prompt[-1].role != "user":
        return None
    if any(turn.role != "assistant" or not turn.text for turn in answers):
        return None
    if not prompt[-1].text or answers[0] == answers[1]:
        return None
    return Preference(as_question(prompt), answers[0].text, answers[1].text)


def read_transcript(text: str, place: str) -> list[Turn]:
    """The turns of a transcript, at least one.

    Raises:
        ValueError: it does not begin with a turn.
    """
    before, *parts = MARK.split(text)
    if before.strip() or not parts:
        raise ValueError(
            f"{place} begins with {text[:20]!r}; expected '\\n\\nHuman: ...\\n\\nAssistant: ...'"
        )
    return [
        Turn(ROLES[role], said.strip()) for role, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def load(
    split: str,
    n: int | None = None,
    *,
    subset: str | None = None,
    path: str | Path | None = None,
) -> list[Preference]:
    """The first `n` pairs of a split.

    `test` is the published one; `validation` is a tenth of the published training set, `train` the
    rest, and dialogues that begin alike are in the same one.

    Args:
        subset: one of `SUBSETS`, of the hub's data; by default all of them, mixed.
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.

    Raises:
        ValueError: an unknown split or subset, an empty one, or rows that do not follow the schema;
            the text names file and line.
        FileNotFoundError: `path` does not exist.
    """
    if subset is not None and subset not in SUBSETS:
        raise ValueError(f"unknown subset {subset!r}; known: {', '.join(SUBSETS)}")
    return SOURCE.load(from_row, split, n, path=path, folder=subset)

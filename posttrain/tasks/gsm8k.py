"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): grade-school word problems, for real models.

Loaded through `datasets`, from the hub or from a local JSON-lines file of the same schema:
`question`, and `answer`, a rationale with calculator marks whose last line is `#### 42`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.tasks.problem import Grade

HUB = "openai/gsm8k"
INSTRUCTION = "Reason step by step. End with: The answer is N."
CALCULATOR = re.compile(r"<<[^>]*>>")
NUMBER = re.compile(r"(?:The answer is|####)\s*\$?(-?[\d,]*\.?\d+)")


@dataclass(frozen=True)
class GSM8KProblem:
    text: str
    rationale: str
    answer: float

    @classmethod
    def from_row(cls, row: dict[str, Any], where: str = "row") -> GSM8KProblem:
        """Read one row.

        Raises:
            ValueError: a column is missing, or the answer does not end in `#### number`.
        """
        missing = {"question", "answer"} - row.keys()
        if missing:
            raise ValueError(
                f"{where}: no column {sorted(missing)[0]!r}; GSM8K has question, answer"
            )
        rationale, mark, _ = row["answer"].rpartition("####")
        answer = final_number(row["answer"])
        if not mark or answer is None:
            raise ValueError(f"{where}: the answer does not end in '#### number'")
        return cls(row["question"].strip(), CALCULATOR.sub("", rationale).strip(), answer)

    @cached_property
    def key(self) -> str:
        return "gsm8k:" + hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def question(self) -> str:
        return f"{self.text}\n{INSTRUCTION}"

    @property
    def bare_answer(self) -> str:
        return f"The answer is {self.answer:g}."

    @property
    def solution(self) -> str:
        return f"{self.rationale}\n{self.bare_answer}"

    def grade(self, completion: str) -> Grade:
        found = final_number(completion)
        return Grade(correct=found == self.answer, parsed=found is not None)


def final_number(text: str) -> float | None:
    """The last number announced by `The answer is` or `####`, or None."""
    found = NUMBER.findall(text)
    try:
        return float(found[-1].replace(",", "")) if found else None
    except ValueError:
        return None


def load(split: str, n: int | None = None, *, path: str | Path | None = None) -> list[GSM8KProblem]:
    """The first `n` problems of a split.

    `train` and `validation` divide the published training set (the last 500 rows validate);
    `test` is the published test set.

    Args:
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.

    Raises:
        ValueError: an unknown split, or rows that do not follow the schema.
        FileNotFoundError: `path` does not exist.
    """
    from datasets import load_dataset  # slow to import, and needed only here

    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}; known: train, validation, test")
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist")
        rows = load_dataset("json", data_files=str(path), split="train")
    else:
        part = {"train": "train[:-500]", "validation": "train[-500:]", "test": "test"}[split]
        rows = load_dataset(HUB, "main", split=part)
    chosen = rows if n is None else rows.select(range(min(n, len(rows))))
    return [GSM8KProblem.from_row(row, f"row {i}") for i, row in enumerate(chosen)]

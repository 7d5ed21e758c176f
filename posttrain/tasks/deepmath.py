r"""DeepMath-103K (He et al. 2025, arXiv:2504.11456): hard mathematics with checkable answers.

A row has `question`, `final_answer` in LaTeX, and three solutions by DeepSeek-R1, `r1_solution_1`
to `r1_solution_3`, that end in \boxed{...}. The solution of a problem is the first of them whose
answer is recognised as the final answer. Rows without any are left out: where not even the
published solutions write an answer as it is graded, a model's right one would be called wrong too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.tasks.boxed import LONGEST, boxed, normal, same
from posttrain.tasks.problem import Grade
from posttrain.tasks.published import Source

INSTRUCTION = r"Reason step by step, and put the final answer within \boxed{}."
SOLUTIONS = ("r1_solution_1", "r1_solution_2", "r1_solution_3")
SOURCE = Source(
    hub="zwhe99/DeepMath-103K",
    columns={"question": str, "final_answer": str, **dict.fromkeys(SOLUTIONS, str)},
    parts={"train": "train", "validation": "train", "test": "train"},
    subject=lambda row: row["question"].strip(),
)


@dataclass(frozen=True)
class DeepMathProblem:
    text: str
    answer: str  # LaTeX
    solution: str

    @classmethod
    def from_row(cls, row: dict[str, Any], place: str = "row") -> DeepMathProblem | None:
        """A row's problem; None where no solution ends in the final answer.

        Raises:
            ValueError: question or final answer are empty, or the answer is too long to grade.
        """
        text, answer = row["question"].strip(), row["final_answer"].strip()
        if not text or not normal(answer) or len(answer) > LONGEST:
            raise ValueError(
                f"{place}: expected a question, and a final_answer of 1 to {LONGEST} characters"
            )
        for solution in (row[name].strip() for name in SOLUTIONS):
            if same(boxed(solution) or "", answer):
                return cls(text, answer, solution)
        return None

    @cached_property
    def key(self) -> str:
        return "deepmath:" + hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def question(self) -> str:
        return f"{self.text}\n{INSTRUCTION}"

    @property
    def bare_answer(self) -> str:
        return f"\\boxed{{{self.answer}}}"

    def grade(self, completion: str) -> Grade:
        """Correct if the last box holds the final answer; `posttrain/tasks/boxed.py` says when."""
        found = boxed(completion)
        return Grade(same(found or "", self.answer), parsed=found is not None)


def load(
    split: str, n: int | None = None, *, path: str | Path | None = None
) -> list[DeepMathProblem]:
    """The first `n` problems of a split.

    Only a training set was published: a tenth of it is `validation`, a tenth `test`, and no
    question is in two of them.

    Args:
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.

    Raises:
        ValueError: an unknown split, an empty one, or rows that do not follow the schema; the text
            names file and line.
        FileNotFoundError: `path` does not exist.
    """
    return SOURCE.load(DeepMathProblem.from_row, split, n, path=path)

"""MBPP (Austin et al. 2021, arXiv:2108.07732): short Python programs, for real models.

Loaded through `datasets`, or from a local JSON-lines file of the same schema: `task_id`, `text`,
`code`, `test_list`, and, if there is any, `test_setup_code`.

Programs run in `posttrain.sandbox`. A test `assert f(1) == 2` is not executed there: the sandbox
computes `f(1)` and prints it as plain data, and the comparison with 2 is made here. So a program
that exits early, prints that all is well, or returns an object that equals everything earns
nothing, and the expected values never enter the sandbox. Tests of another form (a few of a hundred)
are evaluated inside as they are.
"""

from __future__ import annotations

import ast
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain import sandbox
from posttrain.sandbox import Limits
from posttrain.tasks.jsonl import check_row, read_rows
from posttrain.tasks.problem import Grade

HUB = "google-research-datasets/mbpp"
COLUMNS = {"task_id": int, "text": str, "code": str, "test_list": list}
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
LIMITS = Limits(cpu=3, wall=10.0)

# Runs after the program, in its namespace. Prints one line for each expression: its value as a
# Python literal. Only plain data passes; a class of the program's own does not.
REPORT = """
def _plain(value, depth=0):
    kind = type(value)
    if depth > 40:
        raise ValueError("nested too deeply")
    inner = lambda items: ", ".join(_plain(item, depth + 1) for item in items)
    if value is None or kind in (bool, int, float, complex, str, bytes):
        return kind.__repr__(value)
    if kind.__module__ not in ("builtins", "collections"):
        raise TypeError("not plain data: " + kind.__name__)
    if isinstance(value, dict):
        pairs = (_plain(k, depth + 1) + ": " + _plain(v, depth + 1) for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + inner(value) + "]"
    if isinstance(value, tuple):
        return "(" + inner(value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, (set, frozenset)):
        return "{" + inner(value) + "}" if value else "set()"
    raise TypeError("not plain data: " + kind.__name__)

import sys as _sys
for _expression in _EXPRESSIONS:
    try:
        _line = "value " + _plain(eval(_expression))
    except BaseException as _error:
        _line = "error " + type(_error).__name__
    _sys.__stdout__.write("\\n" + _MARK + _line.encode("unicode_escape").decode() + "\\n")
"""


@dataclass(frozen=True)
class Test:
    """One assertion, as an expression and what it must be equal to."""

    expression: str
    expected: str  # Python source


@dataclass(frozen=True)
class MBPPProblem:
    task_id: int
    text: str
    code: str
    tests: tuple[str, ...]
    setup: str = ""
    shown: int = 3  # tests in the question

    @classmethod
    def from_row(cls, row: Any, place: str = "row", *, shown: int = 3) -> MBPPProblem:
        """Read one row.

        Raises:
            ValueError: a column is missing or has another type, there is no test, or a test is no
                assertion.
        """
        row = check_row(row, COLUMNS, place)
        if not row["test_list"]:
            raise ValueError(f"{place}: test_list is empty; expected assertions")
        for test in row["test_list"]:
            try:
                read_test(test)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
        tests = tuple(row["test_list"])
        setup = row.get("test_setup_code") or ""
        return cls(row["task_id"], row["text"].strip(), row["code"], tests, setup, shown)

    @property
    def key(self) -> str:
        return f"mbpp:{self.task_id}"

    @property
    def question(self) -> str:
        """The prompt of the paper (section 3.1), and the form of the answer."""
        tests = "\n".join(self.tests[: self.shown])
        return (
            f"You are an expert Python programmer, and here is your task: {self.text}"
            f" Your code should pass these tests:\n\n{tests}\n\n"
            "Answer with one block of code, between ```python and ```."
        )

    @property
    def solution(self) -> str:
        code = self.code.replace("\r\n", "\n").strip()
        return f"```python\n{code}\n```"

    @cached_property
    def expected(self) -> tuple[Any, ...]:
        """What each test's expression must be equal to.

        Expected values that are no literals, such as `set((1, 2))`, are computed in the sandbox,
        without any program. Where that fails too, because they need the program, the whole test is
        its expression, and True is expected.
        """
        tests = [read_test(test) for test in self.tests]
        values = evaluate(self.setup, [test.expected for test in tests])
        return tuple(values)

    def grade(self, completion: str) -> Grade:
        """Correct is a program that passes every test. Unreadable is one without a block of code.

        Raises:
            UnavailableError: this machine has no sandbox. Nothing else is raised.
        """
        program = read_program(completion)
        if program is None:
            return Grade(correct=False, parsed=False)
        expressions, expected = [], []
        for test, value in zip(self.tests, self.expected, strict=True):
            read = read_test(test)
            if isinstance(value, NoValue):
                expressions.append(f"({read.expression}) == ({read.expected})")
                expected.append(True)
            else:
                expressions.append(read.expression)
                expected.append(value)
        found = evaluate(f"{self.setup}\n{program}", expressions)
        return Grade(correct=all(map(_equal, found, expected)), parsed=True)


class NoValue:
    """In place of a value: computing it failed."""


def read_program(completion: str) -> str | None:
    """The last block of code of a completion, or None where there is none."""
    found = FENCE.findall(completion)
    return str(found[-1]) if found else None


def read_test(text: Any) -> Test:
    """Take an assertion apart.

    Raises:
        ValueError: it is no single assertion.
    """
    try:
        (statement,) = ast.parse(text).body
    except (SyntaxError, ValueError, TypeError):
        statement = None
    if not isinstance(statement, ast.Assert):
        raise ValueError(f"expected an assertion as a test, not {str(text)[:80]!r}")
    test = statement.test
    if isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]:
        return Test(ast.unparse(test.left), ast.unparse(test.comparators[0]))
    return Test(f"bool({ast.unparse(test)})", "True")


def evaluate(program: str, expressions: list[str]) -> list[Any]:
    """The value of each expression after a program; `NoValue` where there is none.

    Values are what the sandbox printed, read as literals: plain data, whatever the program did.

    Raises:
        UnavailableError: this machine has no sandbox.
    """
    mark = f"{secrets.token_hex(8)} "  # apart from what the program prints
    code = f"{program}\n_MARK = {mark!r}\n_EXPRESSIONS = {expressions!r}\n{REPORT}"
    result = sandbox.run(code, limits=LIMITS)
    lines = [line for line in result.stdout.split("\n") if line.startswith(mark)]
    values = [_literal(line.removeprefix(mark)) for line in lines[: len(expressions)]]
    return values + [NoValue()] * (len(expressions) - len(values))


def _literal(line: str) -> Any:
    kind, _, text = line.partition(" ")
    if kind != "value":
        return NoValue()
    try:
        return ast.literal_eval(text.encode().decode("unicode_escape"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return NoValue()


def _equal(a: Any, b: Any) -> bool:
    return not isinstance(a, NoValue) and not isinstance(b, NoValue) and bool(a == b)


def load(
    split: str, n: int | None = None, *, path: str | Path | None = None, shown: int = 3
) -> list[MBPPProblem]:
    """The first `n` problems of a split, as published: 374 train, 90 validate, 500 test.

    Args:
        path: a local JSON-lines file of the same schema, used as it is instead of the hub.
        shown: tests in the question. The published numbers show all three; with one, the others
            are hidden, and a program cannot look their answers up.

    Raises:
        ValueError: an unknown split, an empty one, or rows that do not follow the schema; the text
            names file and line.
        FileNotFoundError: `path` does not exist.
        UnavailableError: this machine cannot run programs safely.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}; known: train, validation, test")
    sandbox.available()  # now, rather than at the first answer
    if path is not None:
        rows: list[tuple[str, Any]] = list(read_rows(path, COLUMNS))
    else:
        from datasets import load_dataset  # slow to import, and needed only here

        rows = [(f"{HUB} {split} {i}", r) for i, r in enumerate(load_dataset(HUB, split=split))]
    if not rows:
        raise ValueError(f"{HUB} has no rows in {split}")
    chosen = rows if n is None else rows[:n]
    return [MBPPProblem.from_row(row, place, shown=shown) for place, row in chosen]

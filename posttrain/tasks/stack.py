"""A small stack language, and an interpreter that any text may be given to.

    x 2 * y +        two times x plus y

Words are separated by spaces. Whole numbers and the inputs `x` and `y` are pushed; `+ - * max min
=` take two values and push one (`=` pushes 1 or 0); `if` takes a condition, a value for when it is
not 0, and one for when it is; `dup`, `swap` and `drop` move values; `n ( ... )` runs what is in the
brackets n times. A program's result is the only value that it leaves.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_WORDS = 64  # of a program
MAX_STEPS = 256  # words executed
MAX_STACK = 32  # values
MAX_VALUE = 10**9  # absolute

NUMBER = re.compile(r"-?\d{1,9}")
BINARY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "max": max,
    "min": min,
    "=": lambda a, b: int(a == b),
}
OPERATIONS = (*BINARY, "if", "dup", "swap", "drop", "(", ")")


@dataclass(frozen=True)
class Outcome:
    """A result, or why there is none: one of the two."""

    value: int | None
    error: str = ""


class _StopError(Exception):
    """A program did something that has no meaning."""


def run(program: str, x: int, y: int) -> Outcome:
    """Run a program. Never raises, and always ends, within the limits above."""
    words = program.split(None, MAX_WORDS)
    if len(words) > MAX_WORDS:
        return Outcome(None, f"more than {MAX_WORDS} words")
    try:
        stack = _execute(words, _brackets(words), x, y)
    except _StopError as error:
        return Outcome(None, str(error))
    if len(stack) != 1:
        return Outcome(None, f"{len(stack)} values are left instead of one")
    return Outcome(stack[0])


def _brackets(words: list[str]) -> dict[int, int]:
    """Position of each bracket's partner."""
    partner, opened = {}, []
    for i, word in enumerate(words):
        if word == "(":
            opened.append(i)
        elif word == ")":
            if not opened:
                raise _StopError("a bracket was never opened")
            partner[i] = opened.pop()
            partner[partner[i]] = i
    if opened:
        raise _StopError("a bracket is never closed")
    return partner


def _execute(words: list[str], partner: dict[int, int], x: int, y: int) -> list[int]:
    stack: list[int] = []
    left: list[int] = []  # repetitions still to do, of the brackets around this word
    at = steps = 0

    def pop() -> int:
        if not stack:
            raise _StopError(f"the stack is empty at word {at + 1}, {words[at]!r}")
        return stack.pop()

    def push(value: int) -> None:
        if abs(value) > MAX_VALUE:
            raise _StopError(f"a value is larger than {MAX_VALUE}")
        if len(stack) >= MAX_STACK:
            raise _StopError(f"more than {MAX_STACK} values on the stack")
        stack.append(value)

    while at < len(words):
        steps += 1
        if steps > MAX_STEPS:
            raise _StopError(f"more than {MAX_STEPS} steps")
        word = words[at]
        if word in BINARY:
            second, first = pop(), pop()
            push(BINARY[word](first, second))
        elif word in ("x", "y"):
            push(x if word == "x" else y)
        elif word == "if":
            otherwise, then, condition = pop(), pop(), pop()
            push(then if condition else otherwise)
        elif word == "dup":
            value = pop()
            push(value)
            push(value)
        elif word == "swap":
            second, first = pop(), pop()
            push(second)
            push(first)
        elif word == "drop":
            pop()
        elif word == "(":
            count = pop()
            if count > 0:
                left.append(count)
            else:
                at = partner[at]
        elif word == ")":
            left[-1] -= 1
            if left[-1]:
                at = partner[at]
            else:
                left.pop()
        elif NUMBER.fullmatch(word) and word.isascii():
            push(int(word))
        else:
            raise _StopError(f"unknown word {word[:20]!r}; known: {' '.join(OPERATIONS)}, x, y")
        at += 1
    return stack

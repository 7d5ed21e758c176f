"""Pretraining text with calls: right and wrong, with and without the calculator.

Authors differ in when they call: never, only on large numbers, or always. Without it, small sums
come out right and large ones wrong in the way of people: carries forgotten, the smaller digit
taken from the larger, factors rounded. A few write calls that the tool refuses, and try again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.tasks.blocks import SEPARATOR, block
from posttrain.tasks.draws import Split
from posttrain.tasks.tools import Conversation, ToolProblem, advance, problem


@dataclass(frozen=True)
class Mixture:
    """Shares of what the documents are made of, each a probability."""

    never: float = 0.4  # that an author never calls
    always: float = 0.2  # that an author always does; the others where it helps
    malformed: float = 0.08  # that a call is malformed at first
    careless: float = 0.1  # that a result is copied wrongly into the answer
    several: float = 0.35  # that a document holds several problems


def mental(call: str) -> int:
    """One operation done in a hurry, without a calculator."""
    operator = next(sign for sign in "+-*" if sign in call)
    a, b = (int(part) for part in call.split(operator))
    if a < 100 and b < 100:
        return {"+": a + b, "-": a - b, "*": a * b}[operator]
    if operator == "*":
        return (a + 5) // 10 * 10 * b
    width = max(len(str(a)), len(str(b)))
    columns = zip(str(a).zfill(width), str(b).zfill(width), strict=True)
    if operator == "+":
        return int("".join(str((int(x) + int(y)) % 10) for x, y in columns))
    return int("".join(str(abs(int(x) - int(y))) for x, y in columns))


def in_the_head(task: ToolProblem) -> int:
    """The answer of someone who does not call."""
    now = task.numbers[0]
    for operator, number in zip(task.operators, task.numbers[1:], strict=True):
        now = mental(f"{now}{operator}{number}")
    return now


def conversation(
    task: ToolProblem, calls: bool, rng: random.Random, mixture: Mixture
) -> Conversation:
    """What one author writes, with the tool's replies."""
    said = Conversation(task)
    if not calls:
        return advance(said, f"The answer is {in_the_head(task)}.")
    for call in task.calls:
        if rng.random() < mixture.malformed:
            broken = rng.choice([f"<call>{call}=</call>", f"<call>{call}", f"<call>{call}</r>"])
            said = advance(said, broken)
        said = advance(said, f"<call>{call}</call>")
    answer = str(task.answer)
    if rng.random() < mixture.careless:
        place = rng.randrange(len(answer))
        answer = answer[:place] + rng.choice("123456789") + answer[place + 1 :]
    return advance(said, f"The answer is {answer}.")


def told(task: ToolProblem, rng: random.Random, mixture: Mixture) -> Conversation:
    """What somebody writes who calls always, never, or where it helps."""
    return conversation(task, _calls(task, rng.random(), mixture), rng, mixture)


def _calls(task: ToolProblem, habit: float, mixture: Mixture) -> bool:
    return habit >= mixture.never and (task.helps or habit < mixture.never + mixture.always)


def documents(seed: int, mixture: Mixture | None = None) -> Iterator[str]:
    """The endless sequence of documents that `seed` defines, from training problems."""
    mixture = mixture or Mixture()
    rng = random.Random(f"tools:{seed}")
    i = 0
    while True:
        habit = rng.random()
        blocks = []
        for _ in range(rng.randint(2, 3) if rng.random() < mixture.several else 1):
            task = problem(Split.TRAIN, i, seed=seed)
            i += 1
            said = conversation(task, _calls(task, habit, mixture), rng, mixture)
            blocks.append(block(task.question, said.text))
        yield SEPARATOR.join(blocks)

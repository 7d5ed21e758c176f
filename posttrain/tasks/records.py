"""Records in an arbitrary format, with many right answers: a new skill unlike any other.

    Record for Tom, number 47: one odd digit, one place.
    {7 / cave / 47 / @Tom}

Any member of the class will do, so there are many right records, and some of them are nearer to
what a model would write anyway than others. A `Format` says how a record is written. `TAUGHT` is
the one to be learned. The base model's corpus shows formats of `SHOWN` only, in episodes of records
that all have one format (`episode`), so that it learns to follow a demonstration without having
met the taught format. Records of four fields are out of distribution.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from posttrain.tasks.draws import (
    check_range,
    distinct,
    known_split,
    pick,
    picks,
    seeded,
    split_by_hash,
)
from posttrain.tasks.math import NAMES, Split
from posttrain.tasks.problem import Demonstration, Grade
from posttrain.tasks.prose import ANIMALS, PLACES, THINGS

FIELDS = (1, 3)  # least and greatest difficulty: fields to fill, besides name and number
OOD_FIELDS = (4, 4)
CLASSES = {
    "odd digit": tuple("13579"),
    "even digit": tuple("02468"),
    "low digit": tuple("01234"),
    "high digit": tuple("56789"),
    "animal": ANIMALS,
    "place": PLACES,
    "thing": THINGS,
}
NUMBERS = range(10, 100)
TWO_DIGITS = re.compile(r"[0-9]{2}")


@dataclass(frozen=True)
class Format:
    """How a record is written: marks, and the order of name (n), number (i) and members (m)."""

    opening: str
    closing: str
    separator: str
    order: str  # a permutation of "nim"
    mark: str  # before the name

    def write(self, name: str, number: int, members: tuple[str, ...]) -> str:
        parts = {"n": [self.mark + name], "i": [str(number)], "m": members}
        fields = [field for part in self.order for field in parts[part]]
        return f"{self.opening}{self.separator.join(fields)}{self.closing}"

    def read(self, text: str) -> tuple[str, str, tuple[str, ...]] | None:
        """Name, number and members of a record in this format, or None. Never raises."""
        record = text.strip()
        if len(record) < 2 or record[0] != self.opening or record[-1] != self.closing:
            return None
        fields = record[1:-1].split(self.separator)
        if len(fields) < 3:
            return None
        parts = {}
        for i, part in enumerate(self.order):  # members take what name and number leave
            after = len(self.order) - 1 - i
            parts[part] = [fields.pop(0) for _ in range(len(fields) - after if part == "m" else 1)]
        (name,), (number,) = parts["n"], parts["i"]
        # Members have one digit at most, so a number in another place is another format.
        if not name.startswith(self.mark) or not TWO_DIGITS.fullmatch(number):
            return None
        return name.removeprefix(self.mark), number, tuple(parts["m"])


BRACKETS = (("[", "]"), ("<", ">"), ("(", ")"), ("{", "}"), ("*", "*"))
SEPARATORS = (" / ", " - ", "; ", " + ")
ORDERS = tuple("".join(order) for order in itertools.permutations("nim"))
MARKS = ("@", "#", "&")
FORMATS = tuple(
    Format(*brackets, separator, order, mark)
    for brackets, separator, order, mark in itertools.product(BRACKETS, SEPARATORS, ORDERS, MARKS)
)
TAUGHT = Format("{", "}", " / ", "min", "@")
# Neither the taught format nor one with the same brackets, separator and order is ever shown;
# each of its parts is.
SHOWN = tuple(f for f in FORMATS if (f.opening, f.separator, f.order) != ("{", " / ", "min"))


@dataclass(frozen=True)
class Record:
    """A record to write: about whom, and one member of each class."""

    name: str
    number: int
    classes: tuple[str, ...]
    format: Format = TAUGHT

    @cached_property
    def key(self) -> str:
        """Identity by content; the format is how it is answered, not what is asked."""
        return f"record:{self.name}:{self.number}:{','.join(self.classes)}"

    @property
    def question(self) -> str:
        fields = ", ".join([f"one {name}" for name in self.classes])
        return f"Record for {self.name}, number {self.number}: {fields}."

    @cached_property
    def solution(self) -> str:
        """One right record; the same each time."""
        return self.demonstrate(seeded(self.key)).answer

    def demonstrate(self, rng: random.Random) -> Demonstration:
        """The question with a right record whose members are drawn from their classes."""
        members = tuple([pick(rng, CLASSES[name]) for name in self.classes])
        return Demonstration(self.question, self.format.write(self.name, self.number, members))

    def right_answers(self) -> Iterator[str]:
        """Every right record."""
        for members in itertools.product(*[CLASSES[name] for name in self.classes]):
            yield self.format.write(self.name, self.number, members)

    def grade(self, completion: str) -> Grade:
        """Right if the whole answer is a record in the format, with name, number and members.

        `parsed` says that it is a record in the format, whatever it holds.
        """
        found = self.format.read(completion)
        if found is None:
            return Grade(correct=False, parsed=False)
        name, number, members = found
        right = name == self.name and number == str(self.number)
        right = right and len(members) == len(self.classes)
        fit = [member in CLASSES[c] for member, c in zip(members, self.classes, strict=False)]
        return Grade(correct=right and all(fit), parsed=True)


def split_of(record: Record) -> Split:
    """The split a record belongs to: OOD by its number of fields, else by a hash of its key."""
    if len(record.classes) >= OOD_FIELDS[0]:
        return Split.OOD
    return split_by_hash(record.key)


def record(
    split: Split | str,
    i: int,
    *,
    seed: int = 0,
    fields: tuple[int, int] | None = None,
    format: Format = TAUGHT,
) -> Record:
    """Record `i` of the infinite sequence that `seed` defines in `split`.

    Args:
        fields: least and greatest number of classes, the difficulty knob; by default `FIELDS`,
            and `OOD_FIELDS` out of distribution.
        format: how the answer is to be written; the questions are the same for all.

    Raises:
        ValueError: an unknown split, or no record of it has that many fields.
    """
    split = known_split(split)
    limits = OOD_FIELDS if split is Split.OOD else FIELDS
    least, most = fields or limits
    check_range(f"{split} records", "fields", (least, most), limits)
    rng = seeded("record", split, seed, i, least, most)
    while True:
        name, number = pick(rng, NAMES), pick(rng, NUMBERS)
        classes = picks(rng, tuple(CLASSES), least + int(rng.random() * (most - least + 1)))
        candidate = Record(name, number, tuple(classes), format)
        if split_of(candidate) is split:
            return candidate


def records(
    split: Split | str,
    n: int,
    *,
    seed: int = 0,
    fields: tuple[int, int] | None = None,
    format: Format = TAUGHT,
) -> list[Record]:
    """The first `n` records of the sequence that are different. Raises ValueError as `record`."""
    source = (record(split, i, seed=seed, fields=fields, format=format) for i in itertools.count())
    return distinct(source, n)


def episode(i: int, *, seed: int = 0, records: int = 3) -> list[Demonstration]:
    """Right records in one format, some `SHOWN` one: what teaches a model to follow an example.

    Questions are of the training split. The format changes from episode to episode, so it can be
    known only from the records before.
    """
    rng = seeded("episode", seed, i)
    format = pick(rng, SHOWN)
    indices = [int(rng.random() * 2**31) for _ in range(records)]
    items = [record(Split.TRAIN, index, seed=seed, format=format) for index in indices]
    return [item.demonstrate(rng) for item in items]

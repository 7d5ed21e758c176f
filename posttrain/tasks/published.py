"""Published datasets: rows from the hub or from a local file, divided into splits.

Where authors published no split of some name, its rows come out of another one, by a hash of what a
row is about; so what is asked in one split is asked in no other that shares the published part.
Rows from the hub come in a fixed random order, because some datasets are sorted by source: the
first thousand rows of HH-RLHF, say, are all of one kind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from posttrain.tasks.draws import Split, seeded, split_by_hash
from posttrain.tasks.jsonl import check_row, read_rows

T = TypeVar("T")
Row = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset, and how its published parts make our splits."""

    hub: str  # owner/name
    columns: Mapping[str, type]  # that a row must have; others are ignored
    parts: Mapping[str, str]  # train, validation, test -> name of the published part
    subject: Callable[[Row], str]  # what a row is about: rows about the same share a split

    def rows(
        self, split: str, path: str | Path | None = None, folder: str | None = None
    ) -> Iterator[tuple[str, Row]]:
        """(place, row) of a split; the place is for error messages.

        Args:
            path: a local JSON-lines file of the same schema, all of it, in its order.
            folder: only this folder of the dataset.

        Raises:
            ValueError: an unknown split, or a row without the columns.
            FileNotFoundError: `path` does not exist.
        """
        if split not in self.parts:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(self.parts)}")
        if path is not None:
            yield from read_rows(path, self.columns)
            return
        from datasets import load_dataset  # slow to import, and needed only here

        part = self.parts[split]
        table = load_dataset(self.hub, data_dir=folder, split=part)
        rng = seeded("published", self.hub, folder, part)
        shuffled = sorted((rng.random(), i) for i in range(len(table)))
        for _, i in shuffled:
            place = f"{self.hub} {part} {i}"
            row = check_row(table[i], self.columns, place)
            if self.split_of(self.subject(row), part) == split:
                yield place, row

    def split_of(self, subject: str, part: str) -> str:
        """The split to which rows of a published part go: 10 % each to all but `train`."""
        served = [split for split, name in self.parts.items() if name == part]
        if len(served) == 1:
            return served[0]
        found = split_by_hash(subject)
        return found.value if found in served else Split.TRAIN.value

    def load(
        self,
        read: Callable[[Row, str], T | None],
        split: str,
        n: int | None = None,
        *,
        path: str | Path | None = None,
        folder: str | None = None,
    ) -> list[T]:
        """The first `n` items of a split; all of them by default.

        Args:
            read: an item from (row, place), or None where a row that follows the schema holds
                nothing to learn from. Such rows are left out, and their number is logged.

        Raises:
            ValueError: as `rows` and `read` do; `n` is less than 1; or no item at all.
        """
        if n is not None and n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        items: list[T] = []
        left_out = 0
        for place, row in self.rows(split, path, folder):
            item = read(row, place)
            if item is None:
                left_out += 1
            else:
                items.append(item)
            if len(items) == n:
                break
        where = path if path is not None else f"{self.hub} {split}"
        if not items:
            raise ValueError(f"{where} is empty: {left_out} rows, and none of them usable")
        if left_out:
            logger.warning("%s: left out %d rows that hold nothing usable", where, left_out)
        return items

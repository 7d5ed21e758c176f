"""Rows of a local JSON-lines file, with errors that say where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_rows(path: str | Path, columns: Mapping[str, type]) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) of every line that is not blank; the place is `file:line`, for error messages.

    Args:
        columns: those that a row must have, with their types; others are kept as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object with these columns, or there is no line at all.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    rows = []
    # Not `splitlines`: it also splits at U+2028 and the like, which JSON strings may hold.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # also of bytes that are no UTF-8
                raise ValueError(f"{place}: not JSON: {error}; {_expected(columns)}") from error
            rows.append((place, check_row(row, columns, place)))
    if not rows:
        raise ValueError(f"{path} is empty; {_expected(columns)}")
    return rows


def check_row(row: Any, columns: Mapping[str, type], place: str) -> dict[str, Any]:
    """The row, if it has these columns.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(row, dict):
        raise ValueError(
            f"{place}: {type(row).__name__} instead of an object; {_expected(columns)}"
        )
    for name, kind in columns.items():
        if name not in row:
            raise ValueError(f"{place}: no column {name!r}; {_expected(columns)}")
        if not isinstance(row[name], kind):
            found = type(row[name]).__name__
            raise ValueError(f"{place}: {name!r} is {found}; {_expected(columns)}")
    return row


def _expected(columns: Mapping[str, type]) -> str:
    return f"expected {', '.join(f'{name} ({kind.__name__})' for name, kind in columns.items())}"

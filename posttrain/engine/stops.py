"""When a generated sequence ends: stop tokens and stop strings.

The token that completes a stop stays in the output, as chat renderers expect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from posttrain.engine.errors import UserError


@dataclass(frozen=True)
class Stops:
    tokens: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()

    @property
    def reach(self) -> int:
        """How many last tokens can hold a stop string that has just been completed.

        A token stands for at least one byte; four more keep the first characters of the piece
        that is decoded, which some decoders trim, out of the comparison.
        """
        return max((len(text.encode()) for text in self.strings), default=0) + 4


def read_stops(stop: Any, eos: frozenset[int]) -> Stops:
    """The `stop` of a sampling request: None (the model's own end tokens), a string, a list of
    strings or a list of token ids. An empty list disables every stop.

    Raises:
        UserError: anything else, or an empty string.
    """
    if stop is None:
        return Stops(eos)
    entries = [stop] if isinstance(stop, str) else stop
    if isinstance(entries, list):
        if all(isinstance(entry, str) and entry for entry in entries):
            return Stops(strings=tuple(entries))
        if all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries):
            return Stops(frozenset(entries))
    raise UserError("stop must be a string, a list of strings, or a list of token ids")


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The directory's fast tokenizer, if it has one. Reads data only, never code."""
    path = directory / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def end_tokens(directory: Path) -> frozenset[int]:
    """Token ids that end a text: of the generation config, else of the config, else of the
    tokenizer's `eos_token`."""

    def read(name: str) -> dict[str, Any]:
        path = directory / name
        return json.loads(path.read_text()) if path.is_file() else {}

    for name in ("generation_config.json", "config.json"):
        found = read(name).get("eos_token_id")
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    token = read("tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    tokenizer = load_tokenizer(directory)
    found = tokenizer.token_to_id(text) if tokenizer is not None and text else None
    return frozenset() if found is None else frozenset([found])

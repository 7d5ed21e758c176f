"""What tokens cost on hosted Tinker: the numbers are in `prices.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

TABLE = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Tokens:
    """What a service charges for."""

    prefill: float = 0  # read: prompts, and texts that are only scored
    sample: float = 0  # written
    train: float = 0  # through forward and backward

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Tokens) -> Tokens:
        return self + other * -1

    def __mul__(self, times: float) -> Tokens:
        return Tokens(*(getattr(self, f.name) * times for f in fields(self)))


@dataclass(frozen=True)
class Prices:
    """The table."""

    service: str
    page: str  # where they are published
    read: date
    checked: bool  # whether somebody of this project has compared them with the page
    models: Mapping[str, Tokens]  # dollars per million tokens of each kind

    def cost(self, model: str, tokens: Tokens) -> float | None:
        """US dollars; None where the model's price is unknown."""
        price = self.models.get(model)
        if price is None:
            return None
        return sum(getattr(price, f.name) * getattr(tokens, f.name) for f in fields(Tokens)) / 1e6

    @property
    def origin(self) -> str:
        """Where they come from, in a sentence."""
        doubt = "" if self.checked else ", from a copy of the page that nobody here has checked"
        return f"Prices of {self.service} on {self.read}{doubt}: {self.page}"


def prices(path: Path = TABLE) -> Prices:
    """The table as it is in the file.

    Raises:
        ValueError: a part is missing, or unknown.
    """
    stored = tomllib.loads(path.read_text())
    try:
        models = {name: Tokens(**price) for name, price in stored.pop("models").items()}
        return Prices(models=models, **stored)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of prices: {error}") from error

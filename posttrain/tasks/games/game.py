"""What a game is: rules from `open_spiel`, told as text, with the best moves known.

A policy sees nothing but the text of a position, as the player to move may see it, and answers
with a completion that ends in `Move: X.`. So everything that depends on what a player knows is a
function of that text: the legal moves, and the best ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Protocol

import pyspiel

MOVE = re.compile(r"Move: ([A-Z]\d{1,2}|[1-9]|pass|bet)\.(?!\S)")


def read_move(completion: str) -> str | None:
    """The last `Move: X.` of a completion, or None where there is none."""
    found = MOVE.findall(completion)
    return str(found[-1]) if found else None


def announce(move: str) -> str:
    """The completion that makes a move and says nothing else."""
    return f"Move: {move}."


class Game(Protocol):
    """One game, for positions of any kind that it knows."""

    @property
    def rules(self) -> str:
        """One sentence for a model that has never seen the game."""

    @property
    def levels(self) -> Mapping[str, tuple[int, int]]:
        """For each split, the least and the greatest difficulty."""

    def draw(self, rng: random.Random, level: int, ood: bool) -> tuple[int, ...]:
        """The setup of a random position that is not over."""

    def state(self, setup: tuple[int, ...]) -> pyspiel.State:
        """The position, for play.

        Raises:
            ValueError: there is no such position.
        """

    def family(self, setup: tuple[int, ...]) -> str:
        """What this position shares with those that are the same up to symmetry."""

    def text(self, state: pyspiel.State) -> str:
        """The position as the player to move sees it."""

    def legal(self, text: str) -> tuple[str, ...]:
        """The legal moves.

        Raises:
            ValueError: this is no text of a position of this game.
        """

    def best(self, text: str) -> Mapping[str, float]:
        """Best moves with probabilities: those of an optimal player, by exact solution."""

    def work(self, text: str) -> str:
        """The thought that leads to a best move, or nothing."""

    def action(self, state: pyspiel.State, move: str) -> int:
        """The number that open_spiel gives to a legal move."""

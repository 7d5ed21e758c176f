"""Who plays: anything that answers texts with completions, and players that know the best moves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from posttrain.tasks.games.game import announce
from posttrain.tasks.games.position import game_of


class Player(Protocol):
    """A policy, a frozen snapshot of one, or a program."""

    def moves(self, texts: Sequence[str]) -> list[str]:
        """One completion for each text, all at once. It must not remember earlier games."""


class Expert:
    """Plays a best move with probability `skill`, else a random legal one.

    Among several best moves it draws; in Kuhn poker with the probabilities of an equilibrium.
    """

    def __init__(self, skill: float = 1.0, *, seed: int = 0) -> None:
        if not 0 <= skill <= 1:
            raise ValueError(f"skill is a probability, not {skill}")
        self.skill = skill
        self._rng = random.Random(seed)

    def moves(self, texts: Sequence[str]) -> list[str]:
        return [announce(self.move(text)) for text in texts]

    def move(self, text: str) -> str:
        """One move, without its announcement."""
        game = game_of(text)
        if self._rng.random() >= self.skill:
            return self._rng.choice(game.legal(text))
        best = game.best(text)
        return self._rng.choices(list(best), list(best.values()))[0]


def optimal(*, seed: int = 0) -> Expert:
    """The exact solution as a player."""
    return Expert(1.0, seed=seed)


def uniform(*, seed: int = 0) -> Expert:
    """Random legal moves."""
    return Expert(0.0, seed=seed)


def seated(
    games: int, players: Sequence[Player], seats: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """For each game the numbers of the players in its two seats; by default the first two.

    Raises:
        ValueError: seats that do not fit.
    """
    chosen = list(seats) if seats is not None else [(0, 1)] * games
    if len(chosen) != games:
        raise ValueError(f"{games} games need as many seats, not {len(chosen)}")
    if any(not 0 <= number < len(players) for pair in chosen for number in pair):
        raise ValueError(f"seats name players 0 to {len(players) - 1}, and one is another")
    return chosen


def moves_of(players: Sequence[Player], number: int, texts: Sequence[str]) -> list[str]:
    """What a player says to each text. Raises ValueError if it does not answer each."""
    answers = players[number].moves(texts)
    if len(answers) != len(texts):
        raise ValueError(f"player {number} gave {len(answers)} moves to {len(texts)} texts")
    return answers

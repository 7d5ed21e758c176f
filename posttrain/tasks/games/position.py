"""Positions: what a game starts from, and problems of one move.

    position("nim", "test", 7).question     # "Nim. Heaps: A3 B4 C5. Your move?"

Splits divide positions by a hash of what they are up to symmetry, so a board and its mirror image,
or heaps in another order, are on the same side. A game that starts from a training position may
well pass through one of the test split: what is held out are problems of one move, and starts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import pyspiel

from posttrain.tasks.draws import Split, distinct, seeded, split_by_hash
from posttrain.tasks.games.game import Game, announce, read_move
from posttrain.tasks.games.kuhn import KuhnPoker
from posttrain.tasks.games.nim import Nim
from posttrain.tasks.games.tictactoe import TicTacToe
from posttrain.tasks.problem import Grade

GAMES: dict[str, Game] = {"nim": Nim(), "tic-tac-toe": TicTacToe(), "kuhn-poker": KuhnPoker()}

DRAWS = 10_000  # after which a split counts as empty


def game_named(name: str) -> Game:
    """The game of this name.

    Raises:
        ValueError: an unknown one; the text lists the known.
    """
    if name not in GAMES:
        raise ValueError(f"unknown game {name!r}; known: {', '.join(GAMES)}")
    return GAMES[name]


def game_of(text: str) -> Game:
    """The game that a text is a position of, by its first word.

    Raises:
        ValueError: none.
    """
    heads = {"Nim.": "nim", "Tic-tac-toe.": "tic-tac-toe", "Kuhn": "kuhn-poker"}
    head = text.split(" ", 1)[0]
    if head not in heads:
        raise ValueError(f"not a position of a known game ({', '.join(GAMES)}): {text[:80]!r}")
    return GAMES[heads[head]]


@dataclass(frozen=True)
class Position:
    """A position of a game; as a `Problem`, it asks for a best move."""

    name: str  # of the game
    setup: tuple[int, ...]  # see the game's class

    @property
    def game(self) -> Game:
        return game_named(self.name)

    @property
    def key(self) -> str:
        return f"{self.name}:{','.join(map(str, self.setup))}"

    def state(self) -> pyspiel.State:
        """The position in open_spiel, to play on.

        Raises:
            ValueError: the game has no such position.
        """
        return self.game.state(self.setup)

    @property
    def question(self) -> str:
        return _question(self.name, self.setup)

    @property
    def legal(self) -> tuple[str, ...]:
        return self.game.legal(self.question)

    @property
    def best(self) -> Mapping[str, float]:
        return self.game.best(self.question)

    @property
    def decisive(self) -> bool:
        """Whether some legal move is worse than another: else the move does not matter."""
        return _decisive(self.name, self.setup)

    @property
    def bare_answer(self) -> str:
        """A best move: the most probable of an optimal player, the first of equals."""
        best = self.best
        return announce(max(best, key=lambda move: best[move]))

    @property
    def solution(self) -> str:
        return f"{self.game.work(self.question)} {self.bare_answer}".strip()

    def grade(self, completion: str) -> Grade:
        """Correct is a best move. An illegal move was read, but is not correct."""
        move = read_move(completion)
        return Grade(correct=move in self.best, parsed=move is not None)


@functools.lru_cache(maxsize=1 << 14)  # more than there are up to four heaps of seven
def _question(name: str, setup: tuple[int, ...]) -> str:
    game = game_named(name)
    return game.text(game.state(setup))


@functools.lru_cache(maxsize=1 << 14)
def _decisive(name: str, setup: tuple[int, ...]) -> bool:
    text = _question(name, setup)
    return len(GAMES[name].best(text)) < len(GAMES[name].legal(text))


@functools.lru_cache(maxsize=1 << 14)
def _split(name: str, setup: tuple[int, ...]) -> Split:
    return split_by_hash(GAMES[name].family(setup))


def position(
    name: str,
    split: Split | str,
    i: int,
    *,
    seed: int = 0,
    level: tuple[int, int] | None = None,
    decisive: bool = True,
) -> Position:
    """Position `i` of the endless sequence that `seed` defines in a split.

    Args:
        level: least and greatest difficulty: heaps of Nim, free cells of tic-tac-toe. By default
            all that the split has. Only Nim goes out of distribution: more and larger heaps.
        decisive: only positions where the move matters, as a problem needs. Without, the sequence
            is one of starts for a game; in Kuhn poker that is a deal of cards, nothing played.

    Raises:
        ValueError: an unknown game, or a split or a difficulty that it does not have, or that has
            no position (two heaps are all in the other splits of Nim).
    """
    game, split = game_named(name), Split(split)
    if split not in game.levels:
        raise ValueError(f"{name} has no split {split}; it has {', '.join(game.levels)}")
    low, high = game.levels[split]
    least, most = level or (low, high)
    if not low <= least <= most <= high:
        raise ValueError(f"{name} has levels {low} to {high} in {split}, not {least} to {most}")
    rng = seeded(name, split, seed, i, least, most, decisive)
    ood = split is Split.OOD
    for _ in range(DRAWS):
        setup = game.draw(rng, rng.randint(least, most), ood)
        if name == "kuhn-poker":
            setup = setup if decisive else setup[:2]
        elif not ood and _split(name, setup) is not split:
            continue
        candidate = Position(name, setup)
        if not decisive or candidate.decisive:
            return candidate
    raise ValueError(
        f"{name} has no {'decisive ' * decisive}position of level {least} to {most} in {split}: "
        f"none came up in {DRAWS:,} draws"
    )


def positions(
    name: str,
    split: Split | str,
    n: int,
    *,
    seed: int = 0,
    level: tuple[int, int] | None = None,
    decisive: bool = True,
) -> list[Position]:
    """The first `n` of the sequence that are different from each other.

    Raises:
        ValueError: as in `position`, or there are not so many.
    """
    sequence = (
        position(name, split, i, seed=seed, level=level, decisive=decisive)
        for i in itertools.count()
    )
    return distinct(sequence, n)

"""Games of TextArena (Guertler et al. 2025, arXiv:2504.11442), for real models.

    matches = play(starts("ConnectFour-v0", 64), [policy, opponent])
    matches[0].rewards                     # (1.0, -1.0): player 0 has won

The players are those of `posttrain.tasks.games`: texts in, completions out, all games at once. A
text is all that TextArena has told this player so far, rules first. A move is the last thing in
square brackets, so a model may think before it. TextArena forgives one illegal move in a row and
punishes the second with the loss of the game.

The library is optional: with it come clients of several companies' models, which nothing here
uses. Only games in `GAMES` are offered: two players, decided by rules alone, and nothing to
download. They run on this machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from posttrain.tasks.draws import seeded
from posttrain.tasks.games.players import Player, moves_of, seated

GAMES = (
    "ConnectFour-v0",
    "KuhnPoker-v0",
    "Nim-v0",
    "Nim-v0-medium",
    "TicTacToe-v0",
    "WildTicTacToe-v0",
)  # ReverseTicTacToe does not compile before Python 3.12
LONGEST = 200  # turns of a game; then it is a draw
BRACKETS = re.compile(r"\[[^\[\]]*\]")


def last_brackets(completion: str) -> str:
    """The last `[...]` of a completion; without any, all of it, which then is an illegal move."""
    found = BRACKETS.findall(completion)
    return str(found[-1]) if found else completion


@dataclass(frozen=True)
class Start:
    """A game and the seed of what chance decides in it; where there is no chance, all are alike."""

    game: str
    seed: int


def starts(game: str, n: int, *, seed: int = 0) -> list[Start]:
    """The first `n` of the sequence that `seed` defines.

    Raises:
        ValueError: a game that is not offered; the text lists those that are.
    """
    if game not in GAMES:
        raise ValueError(f"unknown game {game!r}; known: {', '.join(GAMES)}")
    return [Start(game, int(seeded("arena", game, seed, i).random() * 2**31)) for i in range(n)]


@dataclass(frozen=True)
class Turn:
    """One decision of one player."""

    seat: int
    text: str
    completion: str
    move: str  # what TextArena was given


@dataclass
class Match:
    """One game. A seat is a player's number in TextArena; its rules say who moves first."""

    start: Start
    seats: tuple[int, int]  # number of the player in each seat
    turns: list[Turn] = field(default_factory=list)
    rewards: tuple[float, float] = (0.0, 0.0)  # of each seat: 1 won, -1 lost, 0 drawn
    invalid: int | None = None  # the seat that lost by illegal moves
    cut: bool = False  # after `LONGEST` turns

    def turns_of(self, seat: int) -> list[Turn]:
        return [turn for turn in self.turns if turn.seat == seat]


class Table:
    """A game of TextArena with a source of random numbers of its own.

    The library draws from Python's global one, so games played side by side would disturb each
    other, and everything else in the process.
    """

    def __init__(self, start: Start) -> None:
        self._random = random.Random(start.seed).getstate()
        with self._chance():
            self._env: Any = library().make(start.game)
            self._env.reset(num_players=2, seed=start.seed)

    def observe(self) -> tuple[int, str]:
        """(seat to move, all that it has been told)."""
        with self._chance():
            seat, text = self._env.get_observation()
        return int(seat), str(text).strip()

    def move(self, text: str) -> bool:
        """Make a move; whether the game is over."""
        with self._chance():
            done, _ = self._env.step(action=text)
        return bool(done)

    def result(self) -> tuple[tuple[float, float], int | None]:
        """Rewards of both seats, and who lost by an illegal move."""
        with self._chance():
            rewards, info = self._env.close()
        invalid = [seat for seat in (0, 1) if info[seat]["invalid_move"]]
        return (float(rewards[0]), float(rewards[1])), invalid[0] if invalid else None

    @contextmanager
    def _chance(self) -> Iterator[None]:
        outside = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(outside)


def library() -> Any:
    """TextArena.

    Raises:
        ModuleNotFoundError: it is not installed; the text says how to.
    """
    try:
        import textarena  # slow to import, and needed only here
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "these games need TextArena: pip install textarena==0.7.4 (it brings clients of hosted "
            "models, so it is not installed by default)"
        ) from None
    return textarena


def play(
    begun: Sequence[Start],
    players: Sequence[Player],
    seats: Sequence[tuple[int, int]] | None = None,
    *,
    read: Callable[[str], str] = last_brackets,
) -> list[Match]:
    """Play all games to their end, in rounds: each player is asked once for all its texts.

    Args:
        seats: for each game the numbers of the players in seat 0 and 1; by default the first two.
        read: what of a completion is the move.

    Raises:
        ValueError: seats that do not fit, or a player that did not answer each text.
    """
    chosen = seated(len(begun), players, seats)
    matches = [Match(start, pair) for start, pair in zip(begun, chosen, strict=True)]
    tables = {i: Table(start) for i, start in enumerate(begun)}
    while tables:
        asked: dict[int, list[tuple[int, int, str]]] = {}
        for i, table in tables.items():
            seat, text = table.observe()
            asked.setdefault(matches[i].seats[seat], []).append((i, seat, text))
        for number, positions in asked.items():
            answers = moves_of(players, number, [text for _, _, text in positions])
            for (i, seat, text), answer in zip(positions, answers, strict=True):
                match, move = matches[i], read(answer)
                match.turns.append(Turn(seat, text, answer, move))
                if tables[i].move(move):
                    match.rewards, match.invalid = tables.pop(i).result()
                elif len(match.turns) == LONGEST:
                    match.cut = True
                    del tables[i]
    return matches

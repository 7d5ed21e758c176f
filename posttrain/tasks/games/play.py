"""Many games at once between players, so that a sampling server gets full batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from posttrain.tasks.games.game import read_move
from posttrain.tasks.games.players import Player, moves_of, seated
from posttrain.tasks.games.position import Position

# What happens after a move that is illegal or cannot be read: the move that is made instead, or
# None where the game is lost. It gets the legal moves and a source of random numbers.
Penalty = Callable[[tuple[str, ...], random.Random], str | None]


def forfeit(legal: tuple[str, ...], rng: random.Random) -> str | None:
    """The game is lost."""
    return None


def stumble(legal: tuple[str, ...], rng: random.Random) -> str | None:
    """A random legal move is made."""
    return rng.choice(legal)


@dataclass(frozen=True)
class Turn:
    """One decision of one player."""

    seat: int  # 0 moves first
    text: str
    completion: str
    move: str | None  # what could be read, legal or not
    played: str | None  # what was made of it; None where the game was forfeited
    legal: bool
    best: bool  # the player's own move was one of the best
    decisive: bool  # the move mattered


@dataclass
class Match:
    """One game, from its start to its end."""

    start: Position
    seats: tuple[int, int]  # number of the player in each seat
    turns: list[Turn] = field(default_factory=list)
    returns: tuple[float, float] = (0.0, 0.0)  # of each seat: 1, 0, -1, or chips in Kuhn poker
    forfeited: int | None = None  # the seat that did

    def turns_of(self, seat: int) -> list[Turn]:
        return [turn for turn in self.turns if turn.seat == seat]


def play(
    starts: Sequence[Position],
    players: Sequence[Player],
    seats: Sequence[tuple[int, int]] | None = None,
    *,
    penalty: Penalty = forfeit,
    seed: int = 0,
) -> list[Match]:
    """Play all games to their end, in rounds: each player is asked once for all its positions.

    A player in both seats of a game plays itself. Who forfeits gets the worst return of the game,
    and the other one its opposite, so an illegal move never pays.

    Args:
        seats: for each game the numbers of the players in the first and in the second seat; by
            default the first two players, in this order. Let everyone play both seats: the first
            to move has an advantage in most games, and in Kuhn poker the second.
        penalty: `forfeit` or `stumble`.
        seed: of the random moves of `stumble`.

    Raises:
        ValueError: seats that do not fit, or a player that did not answer each text.
    """
    chosen = seated(len(starts), players, seats)
    matches = [Match(start, pair) for start, pair in zip(starts, chosen, strict=True)]
    states = [match.start.state() for match in matches]
    offsets = [state.current_player() for state in states]  # who moves first is seat 0
    rngs = [random.Random(f"{seed}:{i}") for i in range(len(matches))]
    running = list(range(len(matches)))
    while running:
        asked: dict[int, list[int]] = {}
        for i in running:
            seat = states[i].current_player() ^ offsets[i]
            asked.setdefault(matches[i].seats[seat], []).append(i)
        for number, games in asked.items():
            texts = [matches[i].start.game.text(states[i]) for i in games]
            answers = moves_of(players, number, texts)
            for i, text, answer in zip(games, texts, answers, strict=True):
                seat = states[i].current_player() ^ offsets[i]
                turn = judge(matches[i].start, seat, text, answer, penalty, rngs[i])
                matches[i].turns.append(turn)
                if turn.played is None:
                    matches[i].forfeited = seat
                else:
                    action = matches[i].start.game.action(states[i], turn.played)
                    states[i].apply_action(action)
        for i in running:
            matches[i].returns = _returns(matches[i], states[i], offsets[i])
        running = [
            i for i in running if matches[i].forfeited is None and not states[i].is_terminal()
        ]
    return matches


def judge(
    start: Position, seat: int, text: str, answer: str, penalty: Penalty, rng: random.Random
) -> Turn:
    """What one completion does in one position."""
    legal, best, move = start.game.legal(text), start.game.best(text), read_move(answer)
    allowed = move in legal
    played = move if allowed else penalty(legal, rng)
    decisive = len(best) < len(legal)
    return Turn(seat, text, answer, move, played, allowed, move in best, decisive)


def _returns(match: Match, state: object, offset: int) -> tuple[float, float]:
    """Of seat 0 and 1; zero while the game goes on."""
    if match.forfeited is not None:
        worst = state.get_game().min_utility()  # type: ignore[attr-defined]
        return (worst, -worst) if match.forfeited == 0 else (-worst, worst)
    first, second = state.returns()  # type: ignore[attr-defined]
    return (second, first) if offset else (first, second)

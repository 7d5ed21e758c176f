"""One player against another, from every start in both seats: what a player is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.stats import Estimate, bootstrap_mean, fields_to_json
from posttrain.tasks.games.play import Match, Penalty, forfeit, play
from posttrain.tasks.games.players import Player
from posttrain.tasks.games.position import Position
from posttrain.tasks.games.score import score


@dataclass(frozen=True, eq=False)
class Duel:
    """How a player fared; rates are shares of its 2 n games, intervals from resampling starts."""

    n: int  # starts, each played twice
    win: Estimate
    draw: Estimate
    loss: Estimate
    value: Estimate  # return per game: 1, 0, -1, or chips in Kuhn poker
    seat_values: tuple[float, float]  # the same when it moved first, and when second
    optimal: float | None  # share of its decisions with a best move; None if it had none
    illegal: float  # share of its turns without a legal move
    values: NDArray[np.float64]  # (n,) mean return from each start, for paired comparisons

    def __str__(self) -> str:
        optimal = "-" if self.optimal is None else f"{self.optimal:.0%}"
        return (
            f"win {self.win}  draw {self.draw}  loss {self.loss}  value {self.value}  "
            f"(n={self.n}, best moves {optimal}, illegal {self.illegal:.1%})"
        )

    def to_json(self) -> dict[str, Any]:
        """Every field under its name; estimates as their dictionaries, arrays as lists."""
        return fields_to_json(self)


def duel(
    player: Player,
    opponent: Player,
    starts: Sequence[Position],
    *,
    penalty: Penalty = forfeit,
    seed: int = 0,
) -> Duel:
    """Let `player` meet `opponent` from each start, once in each seat.

    A policy measured against itself always gets 0 on average: measure it against others.

    Raises:
        ValueError: there is no start.
    """
    if not starts:
        raise ValueError("nothing to play: there is no start")
    n = len(starts)
    matches = play(
        [*starts, *starts], [player, opponent], [(0, 1)] * n + [(1, 0)] * n,
        penalty=penalty, seed=seed,
    )  # fmt: skip
    returns_2_n = np.array([_own(match) for match in matches]).reshape(2, n)
    found = score(matches)
    return Duel(
        n=n,
        win=bootstrap_mean((returns_2_n > 0).mean(0), seed),
        draw=bootstrap_mean((returns_2_n == 0).mean(0), seed),
        loss=bootstrap_mean((returns_2_n < 0).mean(0), seed),
        value=bootstrap_mean(returns_2_n.mean(0), seed),
        seat_values=(float(returns_2_n[0].mean()), float(returns_2_n[1].mean())),
        optimal=found.get("optimal"),
        illegal=1 - found.get("legal", 1.0),
        values=returns_2_n.mean(0),
    )


def _own(match: Match) -> float:
    """The return of player 0."""
    return match.returns[match.seats.index(0)]

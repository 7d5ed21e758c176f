"""What a policy is worth at Nim and Kuhn poker: by exact solution, and in games with others.

The reward of self-play is no measure: what one seat wins the other loses, whoever plays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tinker
from numpy.typing import NDArray

from posttrain.lab.compare import Measured, Trained
from posttrain.lab.moves import kuhn_strategy, move_probabilities
from posttrain.lab.worlds import World
from posttrain.methods.players import Ask, PolicyPlayer, as_is, with_rules
from posttrain.scale import Scale
from posttrain.tasks.games.duel import Duel, duel
from posttrain.tasks.games.kuhn import equilibrium, exploitability, mixture, value
from posttrain.tasks.games.players import Player, optimal, uniform
from posttrain.tasks.games.position import Position

SEATS = ("first", "second")


def ask_of(world: World) -> Ask:
    """How positions are put to a policy: a real model is told the rules.

    Raises:
        ValueError: the task is no game.
    """
    if world.task != "games":
        raise ValueError(f"two players need games; the task {world.task!r} is none")
    return with_rules if world.scale is Scale.FULL else as_is


@dataclass(frozen=True, eq=False)
class MoveScore:
    """A policy in I positions; exact for one that announces its move and says no more."""

    best: NDArray[np.float64]  # (I,) probability of a best move
    legal: NDArray[np.float64]  # (I,) of a legal one
    greedy: NDArray[np.bool_]  # (I,) whether the likeliest move is a best one

    def __str__(self) -> str:
        return (
            f"best moves {self.best.mean():.1%} (greedy {self.greedy.mean():.1%}), "
            f"legal {self.legal.mean():.1%}"
        )


def score_moves(
    sampler: tinker.SamplingClient, positions: Sequence[Position], ask: Ask = as_is
) -> MoveScore:
    """How often a policy finds a best move, as exact solution says."""
    found = move_probabilities(sampler, [p.question for p in positions], ask=ask)
    told = [(p.best, found[p.question]) for p in positions]
    return MoveScore(
        best=np.array([m.mass * sum(m.shares[move] for move in best) for best, m in told]),
        legal=np.array([m.mass for _, m in told]),
        greedy=np.array([max(m.shares, key=lambda s: m.shares[s]) in best for best, m in told]),
    )


def chips(
    bets: Mapping[str, float], others: Mapping[str, Mapping[str, float]]
) -> dict[str, tuple[float, float]]:
    """What a strategy of Kuhn poker wins from each of the others per game, exactly: in the first
    seat, and in the second."""
    return {name: (value(bets, other), -value(other, bets)) for name, other in others.items()}


def duels(
    player: Player, others: Mapping[str, Player], starts: Sequence[Position], rounds: int
) -> dict[str, Duel]:
    """Games with each of the others from every start, `rounds` in each seat."""
    return {name: duel(player, other, [*starts] * rounds) for name, other in others.items()}


def on_games(trained: Trained, world: World) -> Measured:
    """What an experiment measures, with opponents that play randomly, best, or as the policy once
    did. In Nim: best moves in the test's positions, and in those of them from which no game started
    (`unseen`), and the share of games from the test's positions that are won, by seat; the past
    self is the start. In Kuhn poker: exploitability, that of all past selves together, and chips a
    game, by seat; the past self is another one in each game.

    Raises:
        ValueError: the arm did not say what its policy was before, or the task is no game.
    """
    ask = ask_of(world)
    if not trained.past:
        raise ValueError("players meet what they were before: an arm has to return its past too")
    now, start = (
        PolicyPlayer(sampler, world.max_tokens, seed, ask)
        for seed, sampler in enumerate((trained.stage.sampler, trained.past[0]))
    )
    moves = score_moves(now.sampler, world.test, ask)
    bets, mass = kuhn_strategy(now.sampler, ask=ask)
    past = mixture([kuhn_strategy(sampler, ask=ask)[0] for sampler in trained.past])
    metrics = {
        "nim/optimal": float(moves.best.mean()),
        "nim/greedy": float(moves.greedy.mean()),
        "nim/legal": float(moves.legal.mean()),
        "kuhn/exploitability": exploitability(bets),
        "kuhn/exploitability of the past": exploitability(past),
        "kuhn/legal": mass,
    }
    unseen = [position not in world.train for position in world.test]
    if any(unseen):
        metrics["nim/unseen"] = float(moves.best[unseen].mean())
    others: dict[str, Player] = {"random": uniform(), "optimal": optimal(), "start": start}
    for name, found in duels(now, others, world.test, world.k).items():
        for seat, returned in zip(SEATS, found.seat_values, strict=True):
            metrics[f"nim/won from {name}, {seat}"] = (1 + returned) / 2  # nobody draws in Nim
    strategies = {"random": dict.fromkeys(bets, 0.5), "optimal": equilibrium(), "past": past}
    for name, won in chips(bets, strategies).items():
        for seat, each in zip(SEATS, won, strict=True):
            metrics[f"kuhn/chips from {name}, {seat}"] = each
    text = f"Nim: {moves}; Kuhn poker: exploitable by {metrics['kuhn/exploitability']:.3f} chips"
    return Measured(metrics, {"nim/optimal": moves.best.tolist()}, text)

"""Multi-agent reinforcement learning: a policy plays games of two, with itself or with others.

Every token of a player's moves is pushed up or down by how much better the game ended for its
seat than games usually end for that seat:

    L = - (1/N) sum_i sum_t rho_it A_i,    A_i = R_i - b[game, seat],

where i counts the N sides that are trained (one seat of one game), R_i is the side's return, t
its tokens, and b a moving average of the returns of that role: the role-conditioned advantage of
SPIRAL (arXiv:2506.24119). Without b the first mover's luck is taken for skill.

A move is one turn: the policy sees the position as text and answers. What the opponent wrote is
never in a datum. A move that is illegal or cannot be read forfeits the game (`penalty`): its side
gets the worst return that the game has, and pays a fine on top. Without the fine an illegal move is
free wherever the game is lost anyway, and there it would be learned.

A policy that plays itself is soon certain, and then it meets nothing new. So a move is also paid
for its surprise,

    A_m = A_i + beta (s_m - mean s),    s_m = - log p(move m),

which is the gradient of beta times the policy's entropy. In two-player zero-sum games, gradient
play that is regularised so approaches equilibria, where plain gradient play circles around them
(Sokota et al. 2023, arXiv:2206.05825).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tinker

from posttrain.datums import batch_indices, policy_datum
from posttrain.methods.players import Ask, Opponent, PolicyPlayer, as_is
from posttrain.methods.rlvr import mismatch
from posttrain.requests import item_seed
from posttrain.rollouts import Rollout
from posttrain.tasks.games.play import Match, Penalty, forfeit, play
from posttrain.tasks.games.players import Player
from posttrain.tasks.games.position import Position
from posttrain.tasks.games.score import score

Role = tuple[int, str, int]  # learner, game, seat
Baselines = dict[Role, float]


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3  # constant
    games: int = 64  # a step
    max_tokens: int = 64  # of a move, thoughts included
    steps: int = 60
    decay: float = 0.95  # of the baselines, per game: they remember the last twenty or so
    fine: float = 1.0  # what a forfeit costs beyond the game's worst return
    entropy: float = 0.03  # beta: what a nat of a move's surprise is worth
    seed: int = 0  # order of the starts, and sampling


@dataclass(frozen=True)
class Side:
    """One seat of one game, as the policy in it lived it."""

    role: Role
    reward: float  # the return, less a fine
    rollouts: tuple[Rollout, ...]  # its moves; none if the game ended before it had one


# (sides, baselines, decay) -> advantage of each side, and the baselines after these games
Advantages = Callable[[Sequence[Side], Mapping[Role, float], float], tuple[list[float], Baselines]]


def sides_of(
    matches: Sequence[Match], number: int, rollouts: Sequence[Rollout], fine: float = 0.0
) -> list[Side]:
    """The sides of player `number`, whose rollouts come in the order in which `play` asked. Who
    forfeits pays the fine, and nobody gets it.

    Raises:
        ValueError: the rollouts are not those of its turns.
    """
    said = iter(rollouts)
    moves: dict[tuple[int, int], list[Rollout]] = {}
    for turn_number in range(max(len(match.turns) for match in matches)):
        for i, match in enumerate(matches):
            turn = match.turns[turn_number] if turn_number < len(match.turns) else None
            if turn is not None and match.seats[turn.seat] == number:
                rollout = next(said, None)
                if rollout is None or rollout.text != turn.completion:
                    raise ValueError(f"turn {turn_number} of game {i} is no rollout of this player")
                moves.setdefault((i, turn.seat), []).append(rollout)
    if next(said, None) is not None:
        raise ValueError("there are more rollouts than turns of this player")
    return [
        Side(
            (number, match.start.name, seat),
            match.returns[seat] - fine * (match.forfeited == seat),
            tuple(moves.get((i, seat), ())),
        )
        for i, match in enumerate(matches)
        for seat in (0, 1)
        if match.seats[seat] == number
    ]  # fmt: skip


def role_advantages(
    sides: Sequence[Side], baselines: Mapping[Role, float], decay: float
) -> tuple[list[float], Baselines]:
    """A = R - b of each side's role, and the baselines after these games (arXiv:2506.24119).

    b <- decay b + (1 - decay) R, game by game, from 0. The advantages use b as it was before all
    of these games: a baseline with the game's own return in it would shrink the gradient.
    """
    advantages = [side.reward - baselines.get(side.role, 0.0) for side in sides]
    after = dict(baselines)
    for side in sides:
        after[side.role] = decay * after.get(side.role, 0.0) + (1 - decay) * side.reward
    return advantages, after


def shared_advantages(
    sides: Sequence[Side], baselines: Mapping[Role, float], decay: float
) -> tuple[list[float], Baselines]:
    """The same with one baseline for all roles of a learner: the control. In self-play returns
    add up to nothing, so this b is about 0, and being first looks like a merit."""
    alike = [replace(side, role=(side.role[0], "all", 0)) for side in sides]
    return role_advantages(alike, baselines, decay)


def marl_datums(
    sides: Sequence[Side], advantages: Sequence[float], entropy: float = 0.0
) -> list[tinker.Datum]:
    """A datum for every move with an advantage, weighed by 1/N for N sides, so that their sum is
    the policy gradient of the expected return of a game, and of `entropy` times the moves'
    entropy. (The mean surprise is that of these moves, their own included: with M of them that
    shrinks the entropy's part by 1/M.)
    """
    moves = [
        (move, advantage)
        for side, advantage in zip(sides, advantages, strict=True)
        for move in side.rollouts
    ]
    surprises = [-sum(move.logprobs) for move, _ in moves]
    mean = sum(surprises) / max(len(moves), 1)
    paid = [
        (move, advantage + entropy * (surprise - mean))
        for (move, advantage), surprise in zip(moves, surprises, strict=True)
    ]
    return [
        policy_datum(move.prompt, move.tokens, move.logprobs, move.spread(advantage / len(sides)))
        for move, advantage in paid
        if advantage
    ]


def train(
    policies: Sequence[tinker.TrainingClient],
    starts: Sequence[Position],
    cfg: Config,
    *,
    opponent: Opponent | None = None,
    advantages: Advantages = role_advantages,
    loss: Any = "importance_sampling",
    loss_config: dict[str, float] | None = None,
    penalty: Penalty = forfeit,
    ask: Ask = as_is,
    baselines: Mapping[Role, float] | None = None,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step of each policy per yield, from step `start` on.

    Args:
        policies: one, which plays itself in both seats or meets the opponent; or two, which meet
            each other and share nothing.
        starts: positions that games begin with, of one game or of several.
        opponent: whom a single policy meets, in each seat half of the time: `against` a fixed
            player, or `PastSelves` (`posttrain/methods/players.py`). By default itself.
        advantages: of the sides, and the baselines after them: `role_advantages`, or another.
        ask: the question that is made of the text of a position.
        baselines: those of a run that is resumed (`baselines_in` its last metrics).

    Raises:
        ValueError: no policy or more than two, or an opponent for two.
    """
    if not 1 <= len(policies) <= (1 if opponent else 2):
        raise ValueError(
            f"{len(policies)} policies{' and an opponent' if opponent else ''}: one policy plays "
            "itself or an opponent, two play each other"
        )
    kept: Baselines = dict(baselines or {})
    for step in range(start, cfg.steps):
        saving = [policy.save_weights_and_get_sampling_client() for policy in policies]
        samplers = [future.result() for future in saving]
        learners = [
            PolicyPlayer(sampler, cfg.max_tokens, item_seed(cfg.seed, step, i), ask)
            for i, sampler in enumerate(samplers)
        ]
        players: list[Player] = [*learners, *([opponent(step, samplers[0])] if opponent else [])]
        batch = batch_indices(len(starts), cfg.games, cfg.seed, step)
        matches = play(
            [starts[i] for i in batch], players, seating(len(players), cfg.games, step),
            penalty=penalty, seed=item_seed(cfg.seed, step),
        )  # fmt: skip
        updates, metrics = [], play_metrics(matches, learners)
        metrics["sampled_tokens"] = tokens_sampled(players)
        for i, (policy, learner) in enumerate(zip(policies, learners, strict=True)):
            sides = sides_of(matches, i, learner.rollouts, cfg.fine)
            found, kept = advantages(sides, kept, cfg.decay)
            data_D = marl_datums(sides, found, cfg.entropy)
            metrics["tokens"] += sum(datum.model_input.length for datum in data_D)
            if data_D:
                backward = policy.forward_backward(data_D, loss, loss_config)
                update = policy.optim_step(tinker.AdamParams(learning_rate=cfg.learning_rate))
                updates.append((data_D, backward, update))
        for data_D, backward, update in updates:
            worst = mismatch(data_D, backward.result())
            metrics["mismatch"] = max(metrics.get("mismatch", 0.0), worst)
            update.result()
        yield metrics | {baseline_name(role): value for role, value in kept.items()}


def seating(players: int, games: int, step: int) -> list[tuple[int, int]]:
    """Who sits where: one player in both seats, two of them in turns."""
    if players == 1:
        return [(0, 0)] * games
    return [((0, 1), (1, 0))[(i + step) % 2] for i in range(games)]


def play_metrics(matches: Sequence[Match], learners: Sequence[PolicyPlayer]) -> dict[str, float]:
    """What to watch, of each policy: `first/optimal` and so on, and `second/` where there are two.

    `optimal` is the share of decisions with a best move, `illegal` of turns without a legal one;
    `seat0_return` and `seat1_return` are means per game. Against itself the returns add up to
    nothing and say nothing about skill: measure against others (`posttrain.tasks.games.duel`).
    """
    metrics = {"tokens": 0.0}
    for i, (prefix, player) in enumerate(zip(("first", "second"), learners, strict=False)):
        found, said = score(matches, i), player.rollouts
        for name in ("optimal", "seat0_return", "seat1_return"):
            if name in found:
                metrics[f"{prefix}/{name}"] = found[name]
        if said:
            tokens = sum(r.length for r in said)
            metrics[f"{prefix}/illegal"] = 1 - found["legal"]
            metrics[f"{prefix}/entropy"] = -sum(sum(r.logprobs) for r in said) / tokens
            metrics[f"{prefix}/length"] = tokens / len(said)
            metrics[f"{prefix}/truncated"] = sum(not r.finished for r in said) / len(said)
    return metrics


def tokens_sampled(players: Sequence[Player]) -> float:
    """By all policies that played, learning or not."""
    policies = [player for player in players if isinstance(player, PolicyPlayer)]
    return float(sum(r.length for player in policies for r in player.rollouts))


def baseline_name(role: Role) -> str:
    """The name under which `train` reports a baseline."""
    return "baseline/{}/{}/{}".format(*role)


def baselines_in(metrics: Mapping[str, float]) -> Baselines:
    """The baselines among the metrics of a step, with which a later `train` goes on."""
    found: Baselines = {}
    for name, value in metrics.items():
        head, *role = name.split("/")
        if head == "baseline":
            learner, game, seat = role
            found[int(learner), game, int(seat)] = value
    return found

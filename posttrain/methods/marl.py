"""Multi-agent reinforcement learning: a policy plays games of two against itself, or against others.

Every token of a player's moves is pushed up or down by how much better the game ended for its
seat than games usually end for that seat:

    L = - (1/N) sum_i sum_t rho_it A_i,    A_i = R_i - b[game, seat],

where i counts the N sides that are trained (one seat of one game), R_i is the side's return, t
its tokens, and b a moving average of the returns of that role: the role-conditioned advantage of
SPIRAL (arXiv:2506.24119). Without b the first mover's luck is taken for skill.

A move is one turn: the policy sees the position as text and answers. What the opponent wrote is
never in a datum. A move that is illegal or cannot be read forfeits the game (`penalty`): its side
gets the worst return that the game has, the other one the opposite, so it never pays.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tinker

from posttrain.datums import batch_indices, chat_prompt, policy_datum
from posttrain.methods.rlvr import mismatch
from posttrain.requests import item_seed
from posttrain.rollouts import Rollout, sample_groups
from posttrain.tasks.games.play import Match, Penalty, forfeit, play
from posttrain.tasks.games.players import Player
from posttrain.tasks.games.position import Position, game_of
from posttrain.tasks.games.score import score

Role = tuple[int, str, int]  # learner, game, seat
Baselines = dict[Role, float]
Ask = Callable[[str], str]  # text of a position -> question
Opponent = Callable[[int, tinker.SamplingClient], Player]  # (step, the policy now) -> whom it meets


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3  # constant
    games: int = 64  # a step
    max_tokens: int = 64  # of a move, thoughts included
    steps: int = 60
    decay: float = 0.95  # of the baselines, per game: they remember the last twenty or so
    seed: int = 0  # order of the starts, and sampling


def as_is(text: str) -> str:
    """The position alone, for a policy that knows the games."""
    return text


def with_rules(text: str) -> str:
    """The position after the rules, for a model that may never have seen the game."""
    rules = game_of(text).rules
    return f"{rules} Answer with your move, for example: Move: X.\n{text}"


@dataclass
class PolicyPlayer:
    """A policy that plays. It keeps what it sampled, in the order in which it was asked."""

    sampler: tinker.SamplingClient
    max_tokens: int  # of a move
    seed: int
    ask: Ask = as_is
    temperature: float = 1.0  # training needs 1
    rollouts: list[Rollout] = field(default_factory=list)
    asked: int = 0  # times

    def moves(self, texts: Sequence[str]) -> list[str]:
        """One completion for each text; equal texts share a request."""
        tokenizer = self.sampler.get_tokenizer()
        counts = Counter(texts)
        groups = sample_groups(
            self.sampler, tokenizer,
            [chat_prompt(tokenizer, self.ask(text)) for text in counts], list(counts.values()),
            max_tokens=self.max_tokens, seed=item_seed(self.seed, self.asked),
            temperature=self.temperature,
        )  # fmt: skip
        left = dict(zip(counts, map(iter, groups), strict=True))
        said = [next(left[text]) for text in texts]
        self.rollouts += said
        self.asked += 1
        return [rollout.text for rollout in said]


@dataclass(frozen=True)
class Side:
    """One seat of one game, as the policy in it lived it."""

    role: Role
    reward: float  # the return
    rollouts: tuple[Rollout, ...]  # its moves; none if the game ended before it had one


def sides_of(matches: Sequence[Match], number: int, rollouts: Sequence[Rollout]) -> list[Side]:
    """The sides of player `number`, whose rollouts come in the order in which `play` asked.

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
            (number, match.start.name, seat), match.returns[seat], tuple(moves.get((i, seat), ()))
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


def marl_datums(sides: Sequence[Side], advantages: Sequence[float]) -> list[tinker.Datum]:
    """A datum for every move of every side with an advantage, weighed by 1/N for N sides, so that
    their sum is the policy gradient of the expected return of a game."""
    return [
        policy_datum(move.prompt, move.tokens, move.logprobs, move.spread(advantage / len(sides)))
        for side, advantage in zip(sides, advantages, strict=True)
        if advantage
        for move in side.rollouts
    ]


def train(
    policies: Sequence[tinker.TrainingClient],
    starts: Sequence[Position],
    cfg: Config,
    *,
    opponent: Opponent | None = None,
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
            player, or `PastSelves`. By default itself.
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
        updates, metrics = [], play_metrics(matches, players)
        for i, (policy, learner) in enumerate(zip(policies, learners, strict=True)):
            sides = sides_of(matches, i, learner.rollouts)
            advantages, kept = role_advantages(sides, kept, cfg.decay)
            data_D = marl_datums(sides, advantages)
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


def play_metrics(matches: Sequence[Match], players: Sequence[Player]) -> dict[str, float]:
    """What to watch, of each policy: `first/optimal` and so on, and `second/` where there are two.

    `optimal` is the share of decisions with a best move, `illegal` of turns without a legal one;
    `seat0_return` and `seat1_return` are means per game. Against itself the returns add up to
    nothing and say nothing about skill: measure against others (`posttrain.tasks.games.duel`).
    """
    metrics = {"tokens": 0.0, "sampled_tokens": 0.0}
    for i, player in enumerate(players):
        if not isinstance(player, PolicyPlayer):
            continue
        found, said = score(matches, i), player.rollouts
        tokens = sum(r.length for r in said)
        metrics["sampled_tokens"] += tokens
        prefix = ("first", "second")[i]
        for name in ("optimal", "seat0_return", "seat1_return"):
            if name in found:
                metrics[f"{prefix}/{name}"] = found[name]
        if said:
            metrics[f"{prefix}/illegal"] = 1 - found["legal"]
            metrics[f"{prefix}/entropy"] = -sum(sum(r.logprobs) for r in said) / tokens
            metrics[f"{prefix}/length"] = tokens / len(said)
            metrics[f"{prefix}/truncated"] = sum(not r.finished for r in said) / len(said)
    return metrics


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


def against(player: Callable[[int], Player]) -> Opponent:
    """The same opponent at every step: `player` makes one of a seed, as `uniform` does."""
    return lambda step, now: player(step)


class PastSelves:
    """A pool of frozen snapshots: each step, one of the last `size`, taken `every` so many steps.

    All are equally likely, as in fictitious self-play (Heinrich et al. 2015): who must do well
    against what it was cannot go round in circles. The newest may be the policy itself.
    """

    def __init__(
        self,
        *,
        every: int = 10,
        size: int = 8,
        max_tokens: int = 64,
        seed: int = 0,
        ask: Ask = as_is,
        snapshots: Mapping[int, tinker.SamplingClient] | None = None,
    ) -> None:
        """`snapshots` by step: those that a run which is resumed needs from before."""
        if every < 1 or size < 1:
            raise ValueError(f"every and size count from 1: every={every}, size={size}")
        self.every, self.size, self.seed = every, size, seed
        self.max_tokens, self.ask = max_tokens, ask
        self.snapshots = dict(snapshots or {})

    def __call__(self, step: int, now: tinker.SamplingClient) -> Player:
        if step % self.every == 0:
            self.snapshots[step] = now
        due = [*range(0, step + 1, self.every)][-self.size :]
        missing = [at for at in due if at not in self.snapshots]
        if missing:
            raise ValueError(f"step {step} needs the snapshots of steps {missing}; pass them on")
        self.snapshots = {at: self.snapshots[at] for at in due}
        chosen = random.Random(f"{self.seed}:{step}").choice(due)
        seed = item_seed(self.seed, step, 1)
        return PolicyPlayer(self.snapshots[chosen], self.max_tokens, seed, self.ask)

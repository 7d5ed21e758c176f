"""Who plays in multi-agent reinforcement learning: a policy, what it was before, a fixed player."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import tinker

from posttrain.datums import chat_prompt
from posttrain.requests import item_seed
from posttrain.rollouts import Rollout, sample_groups
from posttrain.tasks.games.players import Player
from posttrain.tasks.games.position import game_of

Ask = Callable[[str], str]  # text of a position -> question
Opponent = Callable[[int, tinker.SamplingClient], Player]  # (step, the policy now) -> whom it meets


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

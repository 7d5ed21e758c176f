"""The plan of multi-agent RL: games, as long as random play makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import batch_indices, chat_completion, chat_prompt
from posttrain.lab.arms import marl
from posttrain.lab.games import ask_of
from posttrain.lab.plans.work import Work, start
from posttrain.lab.prices import Tokens
from posttrain.lab.worlds import World
from posttrain.methods.marl import seating
from posttrain.methods.players import Ask
from posttrain.tasks.games.game import announce
from posttrain.tasks.games.kuhn import TEXTS
from posttrain.tasks.games.play import play
from posttrain.tasks.games.players import Expert, Player, uniform
from posttrain.tasks.games.position import game_of

LOOKED_AT = 8  # steps whose games are played


@dataclass
class Counted:
    """A player that moves at random, and counts what a policy in its place would read, write and
    learn. Equal texts share a request, as those of `PolicyPlayer` do."""

    tokenizer: Tokenizer
    ask: Ask
    limit: int  # tokens of a move
    tokens: Tokens = field(default_factory=Tokens)
    player: Expert = field(default_factory=uniform)

    def moves(self, texts: Sequence[str]) -> list[str]:
        """As any player."""
        read = {text: len(chat_prompt(self.tokenizer, self.ask(text))) for text in {*texts}}
        learned = sum(read[text] + self.limit for text in texts)
        self.tokens += Tokens(sum(read.values()), len(texts) * self.limit, learned)
        return self.player.moves(texts)


def marl_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    ask, cfg = ask_of(world), marl.marl_config(world, 0)

    def played(starts: Sequence[Any], *others: Player) -> Tokens:
        policy = Counted(tokenizer, ask, world.max_tokens)
        play(starts, [policy, *others], seating(1 + len(others), len(starts), 0))
        return policy.tokens

    steps = min(cfg.steps, LOOKED_AT)
    order = batch_indices(len(world.train), steps * cfg.games, cfg.seed, 0)
    starts = [[world.train[i] for i in order[at::steps]] for at in range(steps)]
    own, half = (
        sum((played(some, *others) for some in starts), Tokens()) * (cfg.steps / steps)
        for others in ((), (uniform(),))
    )
    # With its own past, whom it meets reads and writes as much as the policy, and learns nothing.
    with_past = half + replace(half, train=0)
    nim, kuhn = (
        moves_read(tokenizer, texts, ask) for texts in ([p.question for p in world.test], TEXTS)
    )
    # In each seat a player that moves at random, the best one, and the start, a policy too.
    duels = replace(played([*world.test] * (2 * world.k), uniform()), train=0) * 4
    arms, snapshots = len(marl.EXPERIMENT.arms), -(-cfg.steps // marl.EVERY)
    poker = kuhn * (2 + (arms - 1) * (1 + snapshots))  # of the policy now, and in the past
    return [
        start(world, tokenizer),
        Work("self-play, two arms", world.model, own * 2),
        Work("past selves", world.model, with_past),
        Work("fixed opponents, two arms", world.model, half * 2),
        Work("evaluation", world.model, (nim + duels) * arms + poker),
    ]


def moves_read(tokenizer: Tokenizer, texts: Sequence[str], ask: Ask) -> Tokens:
    """All legal moves of some positions, each scored as a whole completion."""
    asked = [(ask(text), announce(move)) for text in texts for move in game_of(text).legal(text)]
    lengths = (
        len(chat_prompt(tokenizer, question)) + len(chat_completion(tokenizer, question, move))
        for question, move in asked
    )
    return Tokens(prefill=sum(lengths))

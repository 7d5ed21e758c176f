"""What each experiment will read, write and train on, from its configuration alone.

How long demonstrations and questions are is measured with the model's own tokenizer. How long
answers become is not known before, so each counts with all the tokens that it may have: what is
said of sampling is an upper bound, and most answers end earlier. A conversation with a tool reads
its beginning again at each turn, which is not counted. Games count with the moves that random play
makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.prices import Tokens
from posttrain.lab.worlds import World
from posttrain.methods import rlvr, sft
from posttrain.tasks.problem import Demonstration

LOOKED_AT = 64  # items whose length is measured


@dataclass(frozen=True)
class Work:
    """Something that a run does once for every seed."""

    what: str
    model: str
    tokens: Tokens


# (world, tokenizer of the policy) to all work of one seed.
Plan = Callable[[World, "Tokenizer"], list[Work]]


@dataclass(frozen=True)
class Texts:
    """Questions of a world and answers to them: what it costs to write, read or learn them."""

    tokenizer: Tokenizer
    world: World
    shown: Callable[[Any], str] = lambda item: str(item.question)  # what is asked about an item

    @cached_property
    def question(self) -> float:
        """Mean length of a prompt."""
        return self.asked(self.world.train)

    @property
    def whole(self) -> float:
        """A question with an answer of all the tokens that it may have."""
        return self.question + self.world.max_tokens

    def asked(self, items: Sequence[Any]) -> float:
        """Mean length of the prompts of some items."""
        looked = [self.shown(item) for item in items[:LOOKED_AT]]
        return sum(len(self.world.prompt(self.tokenizer, text)) for text in looked) / len(looked)

    def written(self, questions: float, each: int = 1) -> Tokens:
        """So many answers to each of so many questions, which are read once."""
        return Tokens(self.question, each * self.world.max_tokens) * questions

    def read(self, texts: float) -> Tokens:
        """Texts that are only scored."""
        return Tokens(prefill=texts * self.whole)

    def learned(self, texts: float) -> Tokens:
        """Texts through forward and backward."""
        return Tokens(train=texts * self.whole)

    def graded(self, items: Sequence[Any], count: int) -> Tokens:
        """`count` sampled answers and a greedy one to each item, as `evaluate` takes them."""
        if not items:
            return Tokens()
        return Tokens(2 * self.asked(items), (count + 1) * self.world.max_tokens) * len(items)

    def measured(self, longer: bool = False) -> Tokens:
        """The evaluation of one policy in a comparison (`posttrain.lab.stage.measure`)."""
        world, k = self.world, max(self.world.k // 2, 1)
        ood = world.ood[: len(world.ood) // 2] if longer else ()
        return self.graded(world.test, k) + self.graded(ood, max(k // 2, 1))

    def practised(self, cfg: rlvr.Config) -> Tokens:
        """The rollouts of reinforcement learning, or of rejection sampling."""
        batches = -(-cfg.steps // cfg.reuse) * cfg.rounds
        return self.written(batches * cfg.prompts, cfg.group_size)


def imitation(tokenizer: Tokenizer, cfg: sft.Config, shown: Sequence[Demonstration]) -> Tokens:
    """Supervised fine-tuning."""
    data_D = sft.sft_datums(tokenizer, shown[:LOOKED_AT])
    each = sum(datum.model_input.length for datum in data_D) / len(data_D)
    return Tokens(train=cfg.steps * cfg.batch_size * each)


def start(world: World, tokenizer: Tokenizer, what: str = "SFT start") -> Work:
    """The cold start that most experiments share."""
    cfg = cold_start_config(world, 0)
    return Work(what, world.model, imitation(tokenizer, cfg, world.demonstrations))

"""The plans of SFT, of RLVR and of the main job: answers are right or wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.lab.arms.rlvr import rlvr_config
from posttrain.lab.arms.sft import sft_config
from posttrain.lab.plans.work import Texts, Work, imitation, start
from posttrain.lab.prices import Tokens
from posttrain.lab.worlds import World, bare, worked
from posttrain.methods import rlvr
from posttrain.scale import pick


def sft_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    cfg, n = sft_config(world, 0), pick(world.scale, smoke=32, laptop=1000, full=None)
    texts = Texts(tokenizer, world)
    return [
        Work("chain of thought", world.model, imitation(tokenizer, cfg, worked(world.train[:n]))),
        Work("answer only", world.model, imitation(tokenizer, cfg, bare(world.train[:n]))),
        Work("evaluation", world.model, texts.measured(longer=True) * 3),
    ]


def rlvr_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    texts, cfg = Texts(tokenizer, world), rlvr_config(world, 0)
    again = texts.learned(cfg.steps * cfg.prompts * cfg.group_size)
    return [
        start(world, tokenizer),
        Work("RLVR", world.model, reinforcement(texts, cfg)),
        Work("rejection sampling", world.model, texts.practised(cfg) + again),
        Work("evaluation", world.model, texts.measured() * 3),
    ]


def job_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    """The main job: SFT, RLVR, and four evaluations."""
    texts, cfg = Texts(tokenizer, world), rlvr_config(world, 0)
    tested = texts.graded(world.test[:100], world.k) + texts.graded(world.test, world.k) * 3
    return [
        start(world, tokenizer, "SFT"),
        Work("RLVR", world.model, reinforcement(texts, cfg)),
        Work("evaluation", world.model, tested),
    ]


def reinforcement(texts: Texts, cfg: rlvr.Config) -> Tokens:
    """Rollouts, updates on all of them, and the distance from a reference now and then."""
    trained = texts.learned(cfg.steps * cfg.prompts * cfg.group_size)
    return texts.practised(cfg) + trained + texts.read(-(-cfg.steps // cfg.kl_every) * cfg.prompts)

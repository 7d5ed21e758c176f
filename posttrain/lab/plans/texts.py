"""The plans of DPO, RLHF and rubric RL: texts are compared, or judged by criteria."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.lab.arms import dpo, rlhf, rubric_rl
from posttrain.lab.plans.work import LOOKED_AT, Texts, Work, start
from posttrain.lab.prices import Tokens
from posttrain.lab.worlds import World
from posttrain.methods.reward_model import good_prompt
from posttrain.scale import pick
from posttrain.tasks.rubrics import judge_prompt, rubric

CUSTOM = 2  # a custom loss computes a forward pass first, and then forward and backward


def dpo_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    texts, n = Texts(tokenizer, world), len(world.train)
    cfg, control = dpo.dpo_config(world, 0), dpo.control_config(world, 0)
    update = texts.read(2 * n) + texts.learned(CUSTOM * 2 * cfg.steps * cfg.batch_size)
    return [
        start(world, tokenizer),
        Work("pairs", world.model, texts.written(n, 2)),
        Work("DPO, three arms", world.model, update * 3),
        Work("SFT on chosen", world.model, texts.learned(control.steps * control.batch_size)),
        Work("evaluation", world.model, compared(texts) * 5),
        *verdicts(texts, n + 5 * len(world.test) * world.k),
    ]


def rlhf_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    texts, cfg = Texts(tokenizer, world), rlhf.rlhf_config(world, 0)
    asked = Texts(tokenizer, world, lambda item: good_prompt(item.question, ""))  # of an answer
    n = len(world.train) * pick(world.scale, smoke=1, laptop=4, full=1)
    model = rlhf.reward_config(world, 0)
    seen = model.steps * model.batch_size * 2
    drawn = cfg.steps * cfg.prompts * cfg.group_size
    rollouts = texts.practised(cfg) + asked.read(drawn)
    optimised = rollouts + texts.read(drawn) + texts.learned(drawn)
    tested, best = len(world.test) * world.k, rlhf.choices(world)
    return [
        start(world, tokenizer),
        Work("pairs", world.model, texts.written(n, 2)),
        Work("reward model", world.model, asked.learned(CUSTOM * seen)),
        Work("RLHF, two arms", world.model, optimised * 2),
        Work("best of n", world.model, texts.written(tested, best) + asked.read(tested * best)),
        Work("rejection sampling", world.model, rollouts + texts.learned(drawn)),
        Work("evaluation", world.model, (compared(texts) + asked.read(2 * tested)) * 5),
        *verdicts(texts, n + 5 * tested),
    ]


def rubric_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    """A judge reads every text once for each of its criteria; the holistic one reads it once, and
    some criteria are checked by a program, which is not counted off."""
    texts, cfg = Texts(tokenizer, world), rubric_rl.rubric_config(world, 0)
    looked = world.train[:LOOKED_AT]
    criteria = sum(len(rubric(item)) for item in looked) / len(looked)
    asked = Texts(tokenizer, world, lambda item: judge_prompt(item, rubric(item)[0], ""))
    drawn, tested = cfg.steps * cfg.prompts * cfg.group_size, len(world.test) * world.k
    arms, judged = len(rubric_rl.EXPERIMENT.arms), asked.read(criteria)
    rollouts, learned = texts.practised(cfg), texts.learned(drawn)
    return [
        start(world, tokenizer),
        Work("RL, five arms", world.model, (rollouts + texts.read(drawn) + learned) * 5),
        Work("rejection sampling", world.model, rollouts + learned),
        Work("judge while training", world.judge or "", judged * 5 * drawn + asked.read(drawn)),
        Work("evaluation", world.model, compared(texts) * arms),
        Work("judge in evaluation", world.judge or "", judged * arms * tested),
    ]


def verdicts(texts: Texts, pairs: float) -> list[Work]:
    """What a judge model reads, where there is one: both orders of a pair, and two letters each."""
    judge, answer = texts.world.judge, texts.world.max_tokens
    if judge is None:
        return []
    return [Work("judge", judge, Tokens(prefill=4 * pairs * (texts.question + 2 * answer)))]


def compared(texts: Texts) -> Tokens:
    """The evaluation of a policy by its texts beside a reference's, as `on_texts` has it."""
    test, k = len(texts.world.test), texts.world.k
    return texts.written(2 * test, k) + texts.read(test * k)

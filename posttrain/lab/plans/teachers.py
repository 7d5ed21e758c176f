"""The plans of distillation and of SDFT: a teacher writes texts, or reads them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.lab.arms import distillation, sdft
from posttrain.lab.plans.work import LOOKED_AT, Texts, Work, imitation, start
from posttrain.lab.prices import Tokens
from posttrain.lab.worlds import World, worked
from posttrain.methods import sft
from posttrain.methods.distillation import Config
from posttrain.methods.objectives import Objective, drawn_kl_p_q, on_students_top
from posttrain.methods.sdft import as_texts, own_demonstration

# How often the student reads a text to be asked about it, and how often it goes through training,
# where that is not (0, 1): a custom loss computes a forward pass of its own.
PASSES: Mapping[Objective, tuple[int, int]] = {drawn_kl_p_q: (1, 1), on_students_top: (1, 2)}


def distillation_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    """What student and teacher do for an arm are apart, both under its name. The teacher's tokens
    are the budget at which an arm ends; the student's are those of as many texts as it is for, if
    they were as long as they may be."""
    texts, cfg = Texts(tokenizer, world), distillation.distillation_config(world, 0)
    student, teacher, each = world.model, world.teacher or "", cfg.group_size
    budget = distillation.budget_of(cfg, world, tokenizer)

    def asked(cell: distillation.Cell) -> int:
        return cfg.prompts * distillation.within(cfg, world, tokenizer, cell)

    def taught(name: str, cell: distillation.Cell) -> Work:
        n = asked(cell)
        work = texts.written(cell.written * n, each) + texts.read(cell.scored * n * each)
        counted = work.sample + cell.scored * n * each * texts.whole
        return Work(name, teacher, work * (budget / counted))

    arms, work = distillation.EXPERIMENT.arms, [start(world, tokenizer)]
    for name, arm in arms.items():
        cell = arm.keywords.get("cell") if isinstance(arm, partial) else None
        if cell is not None:
            n, (read, learned) = asked(cell), PASSES.get(cell.objective, (0, 1))
            own = texts.read(read * n * each) + texts.learned(learned * n * each)
            own += texts.written(0 if cell.written else n, each)
            work += [Work(name, student, own), taught(name, cell)]
    off, told = asked(distillation.OFF_POLICY), min(len(world.test), 200)
    people = sft.Config(steps=off // cfg.prompts, batch_size=cfg.prompts * each)
    tested = texts.measured(longer=True) + texts.written(told)
    return [
        *work,
        Work("more SFT", student, imitation(tokenizer, people, world.demonstrations)),
        taught("off-policy filtered", distillation.OFF_POLICY),
        Work("off-policy filtered", student, texts.learned(off * each)),
        Work("evaluation", student, tested * len(arms)),
        Work("evaluation", teacher, texts.read(told) * len(arms)),
    ]


def sdft_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    if world.before is None:
        raise ValueError(f"the task {world.task!r} has no skill to be taught before it, and kept")
    cfg, first = sdft.second_config(world, 0), sdft.first_config(world.before, 0)
    texts, old = Texts(tokenizer, world), Texts(tokenizer, world.before)
    told = Texts(tokenizer, world, own_demonstration)  # as the teacher is asked
    new = imitated(texts, cfg)
    replay = imitated(old, cfg) * sdft.REPLAYED + new * (1 - sdft.REPLAYED)
    asked = cfg.steps * cfg.prompts  # one text each
    distilled = texts.written(asked) + told.read(asked) + texts.learned(asked)
    tested = on_skill(texts) + on_skill(old)
    return [
        Work("start", world.model, imitated(old, first)),
        Work("SFT, three arms", world.model, new * 3),
        Work("SFT with replay", world.model, replay),
        Work("SDFT, five arms", world.model, distilled * 5),
        Work("retelling, two arms", world.model, (told.written(len(world.train), 2) + new) * 2),
        Work("evaluation", world.model, tested * len(sdft.EXPERIMENT.arms)),
    ]


def on_skill(texts: Texts) -> Tokens:
    """The evaluation of one skill, and of how far the policy has moved there."""
    test = texts.world.test
    return texts.graded(test, texts.world.k) + texts.written(len(test)) + texts.read(len(test))


def imitated(texts: Texts, cfg: Config) -> Tokens:
    """Supervised fine-tuning in the loop of distillation, one demonstration to each question."""
    shown = worked(texts.world.train[:LOOKED_AT])
    found = as_texts(texts.world.renderer(texts.tokenizer), shown)
    each = sum(len(text.prompt) + len(text.tokens) - 1 for text in found) / len(found)
    return Tokens(train=cfg.steps * cfg.prompts * each)

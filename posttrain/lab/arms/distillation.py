"""The arms of the two lessons on distillation: whose texts, which divergence, at equal cost.

All arms of a seed share the start, and end when the teacher has spent the same number of tokens,
written or scored: with a teacher that writes and scores after fewer steps than with one that does
only one of both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tinker

from posttrain.datums import chat_completion, chat_prompt
from posttrain.lab.arms.rlvr import FULL_RL, cold_start_config, shared_start
from posttrain.lab.arms.sft import FULL_RATE as FULL_SFT
from posttrain.lab.compare import (
    Claim,
    Experiment,
    Headline,
    Measured,
    Trained,
    at_rate,
    on_problems,
)
from posttrain.lab.stage import run_stage
from posttrain.lab.worlds import World, parameters_of
from posttrain.methods import distillation, objectives, sft
from posttrain.methods.distillation import (
    Questions,
    Texts,
    students_texts,
    teachers_texts,
    until_spent,
)
from posttrain.methods.objectives import (
    Objective,
    drawn_kl_p_q,
    drawn_kl_q_p,
    on_students_top,
    sampled_kl_p_q,
    sampled_kl_q_p,
    soft_kl_q_p,
)
from posttrain.rollouts import log_ratios, sample_answers
from posttrain.runs import Metrics, Run
from posttrain.scale import pick


@dataclass(frozen=True)
class Cell:
    """Who writes the texts, what is matched on them, and what the teacher does for it."""

    texts: Texts
    objective: Objective
    scored: bool  # by the teacher, apart from writing them
    full: float  # learning rate at full scale

    @property
    def written(self) -> bool:
        return self.texts is teachers_texts


ON_POLICY = Cell(students_texts, sampled_kl_p_q, scored=True, full=FULL_RL)
DAGGER = Cell(students_texts, drawn_kl_q_p, scored=True, full=FULL_SFT)
OFF_POLICY = Cell(teachers_texts, sampled_kl_q_p, scored=False, full=FULL_SFT)
REVERSE = Cell(teachers_texts, drawn_kl_p_q, scored=True, full=FULL_RL)
TOP_K = Cell(students_texts, on_students_top, scored=True, full=FULL_RL)
SOFT = Cell(teachers_texts, soft_kl_q_p, scored=True, full=FULL_SFT)


def distillation_config(
    world: World, seed: int, rate: float | None = None, *, full: float = FULL_RL
) -> distillation.Config:
    """The configuration of on-policy distillation at the world's scale; `within` has the others."""
    cfg = distillation.Config(
        steps=world.steps(smoke=2, laptop=30, full=100),
        prompts=pick(world.scale, smoke=4, laptop=16, full=32),
        group_size=pick(world.scale, smoke=2, laptop=4, full=4),
        max_tokens=world.max_tokens,
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=full)


def budget_of(cfg: distillation.Config, world: World, tokenizer: Any) -> int:
    """Teacher tokens that `cfg` costs on-policy, with texts as long as worked solutions."""
    return round(texts_of(cfg) * per_text(world, tokenizer, ON_POLICY))


def within(cfg: distillation.Config, world: World, tokenizer: Any, cell: Cell) -> int:
    """Steps of `cell` for that budget, with texts of that length; more if they are shorter."""
    each = per_text(world, tokenizer, cell) * cfg.prompts * cfg.group_size
    return max(1, round(budget_of(cfg, world, tokenizer) / each))


def per_text(world: World, tokenizer: Any, cell: Cell) -> float:
    """Teacher tokens that a text costs in this cell, if it is as long as a worked solution."""
    some = world.train[:100]
    asked = sum(len(chat_prompt(tokenizer, item.question)) for item in some)
    told = sum(len(chat_completion(tokenizer, item.question, item.solution)) for item in some)
    return (cell.written * told + cell.scored * (asked + told)) / len(some)


def texts_of(cfg: distillation.Config) -> int:
    return cfg.steps * cfg.prompts * cfg.group_size


def teacher_of(service: tinker.ServiceClient, world: World) -> tinker.SamplingClient:
    """The world's teacher. Raises ValueError where it has none."""
    if world.teacher is None:
        raise ValueError(f"the task {world.task!r} has no teacher; math and gsm8k do")
    return service.create_sampling_client(base_model=world.teacher).result()


def distil(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    cell: Cell,
    rate: float | None = None,
) -> Trained:
    """Cold start, then distillation as `cell` says."""
    first, teacher = shared_start(service, world, folder, seed), teacher_of(service, world)
    cfg = distillation_config(world, seed, rate, full=cell.full)
    budget = budget_of(cfg, world, teacher.get_tokenizer())
    steps = within(cfg, world, teacher.get_tokenizer(), cell)
    cfg, questions = replace(cfg, steps=2 * steps), Questions(world.train)

    def train(policy: tinker.TrainingClient, at: int) -> Iterator[Metrics]:
        spent = sum(line["teacher_tokens"] for line in Run.found(folder).metrics()[:at])
        loop = distillation.train(
            policy, teacher, questions, cfg, texts=cell.texts, objective=cell.objective, start=at
        )
        return until_spent(loop, budget, spent)

    stage = run_stage(
        service, world, folder, train, cfg, start=first.checkpoint,
        extra={"texts": cell.texts.__name__, "objective": cell.objective.__name__,
               "teacher": world.teacher, "budget": budget},
        show=("divergence", "entropy", "length"),
    )  # fmt: skip
    taught = sum(line["teacher_tokens"] for line in stage.metrics)
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    cost.flops += 2 * taught * (parameters_of(world.teacher or "") - world.parameters)
    return Trained(stage, cost, teacher, told={"teacher_tokens": taught})


def filtered(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Cold start, then off-policy distillation on those texts of the teacher that are right: what
    is left out has been paid for, and those that are left are read more than once."""
    first, teacher = shared_start(service, world, folder, seed), teacher_of(service, world)
    cfg = distillation_config(world, seed, rate, full=OFF_POLICY.full)
    questions = Questions(world.train)
    found = distillation.collect(
        teacher, questions, cfg, keep=lambda item, text: item.grade(text.text).correct,
        budget=budget_of(cfg, world, teacher.get_tokenizer()),
    )  # fmt: skip
    cfg = replace(cfg, steps=-(-found.written // (cfg.prompts * cfg.group_size)))
    stage = run_stage(
        service, world, folder,
        lambda policy, at: distillation.train(
            policy, teacher, questions, cfg, texts=distillation.given(found.texts),
            objective=sampled_kl_q_p, start=at,
        ),
        cfg, start=first.checkpoint,
        extra={"kept": len(found.texts), "teacher": world.teacher}, show=("divergence", "length"),
    )  # fmt: skip
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    cost.sample(found.sampled_tokens, parameters_of(world.teacher or ""))
    return Trained(stage, cost, teacher, told={"teacher_tokens": float(found.sampled_tokens)})


def more_people(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Cold start, then more SFT on people's solutions: steps and texts of off-policy distillation
    without its teacher."""
    first, teacher = shared_start(service, world, folder, seed), teacher_of(service, world)
    budget = distillation_config(world, seed)
    cfg = sft.Config(
        steps=within(budget, world, teacher.get_tokenizer(), OFF_POLICY),
        batch_size=budget.prompts * budget.group_size,
        seed=seed,
    )
    cfg, shown = at_rate(cfg, world, rate, full=FULL_SFT), world.demonstrations
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, shown, cfg, start=at), cfg,
        start=first.checkpoint, extra={"demonstrations": len(shown)}, show=("loss",),
    )  # fmt: skip
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    return Trained(stage, cost, teacher, told={"teacher_tokens": 0.0})


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The cold start itself: where all others begin."""
    first, teacher = shared_start(service, world, folder, seed), teacher_of(service, world)
    return Trained(first, first.cost(world.parameters), teacher, told={"teacher_tokens": 0.0})


def on_problems_and_teacher(trained: Trained, world: World) -> Measured:
    """Right answers, and how the policy's own texts look beside the teacher's distribution: its
    entropy and KL(p || q), in nats a token, from one answer to each of up to 200 problems."""
    assert trained.reference is not None  # every arm above has a teacher
    found = on_problems(trained, world)
    groups = sample_answers(
        trained.stage.sampler, world.test[:200], 1, max_tokens=world.max_tokens, seed=0
    )
    rollouts = [rollout for group in groups for rollout in group]
    tokens = sum(len(rollout.tokens) for rollout in rollouts)
    entropy = -sum(x for rollout in rollouts for x in rollout.logprobs) / tokens
    own = {
        "test/entropy": entropy,
        "test/kl_teacher": sum(log_ratios(trained.reference, rollouts)) / tokens,
        **trained.told,
    }
    return replace(found, metrics={**found.metrics, **own})


GRID = (3e-4, 1e-3, 3e-3)
HIGHER = (1e-3, 3e-3, 6e-3)

EXPERIMENT = Experiment(
    name="methods/distillation",
    arms={
        "SFT start": start_only,
        "more SFT": partial(more_people, rate=1e-3),
        "off-policy": partial(distil, cell=OFF_POLICY, rate=3e-3),
        "off-policy filtered": partial(filtered, rate=3e-3),
        "off-policy soft": partial(distil, cell=SOFT, rate=3e-3),
        "off-policy reverse": partial(distil, cell=REVERSE, rate=3e-4),
        "as DAgger": partial(distil, cell=DAGGER, rate=3e-3),
        "on-policy": partial(distil, cell=ON_POLICY, rate=3e-4),
        "on-policy top-k": partial(distil, cell=TOP_K, rate=3e-4),
    },
    claims=[
        Claim("On-policy distillation beats the policy it starts from",
              "on-policy", "SFT start", "test/pass@1"),
        Claim("Off-policy distillation beats more SFT on people's solutions",
              "off-policy", "more SFT", "test/pass@1"),
        Claim("On-policy distillation beats off-policy at equal teacher tokens",
              "on-policy", "off-policy", "test/pass@1"),
        Claim("It does so on longer problems than trained on",
              "on-policy", "off-policy", "ood/pass@1"),
        Claim("Soft targets beat hard ones at equal teacher tokens",
              "off-policy soft", "off-policy", "test/pass@1"),
        Claim("Filtering the teacher's texts helps, at equal teacher tokens",
              "off-policy filtered", "off-policy", "test/pass@1"),
        Claim("KL(p || q) on the student's texts leaves less entropy than KL(q || p)",
              "on-policy", "as DAgger", "test/entropy"),
    ],
    # The others take the rate of that one of these whose gradient is like theirs.
    rates={"more SFT": HIGHER, "off-policy": HIGHER, "on-policy": GRID},
    headline={
        "on_policy": Headline("SFT start", "on-policy", "off-policy", "test/pass@1"),
        "off_policy": Headline("SFT start", "off-policy", "more SFT", "test/pass@1"),
    },
    configs=lambda world: {
        "cold start": asdict(cold_start_config(world, 0)),
        "on-policy": asdict(distillation_config(world, 0)),
        "teacher": world.teacher,
    },
    sources=[distillation, objectives, sft, sys.modules[__name__]],
    measure=on_problems_and_teacher,
    longer=True,
    swept=1.0,
)  # fmt: skip

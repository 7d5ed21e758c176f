"""The arms of the SDFT lesson: an old skill is taught, then a new one in many ways.

All arms of a seed share the first stage. In the second, each step of every arm is about the same
questions, one text to each: a demonstration, something made of it, or what the policy writes. All
are one loop, that of `posttrain.methods.distillation`, with other texts and another objective; so
a learning rate means the same to each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tinker

from posttrain.evals import Score, evaluate
from posttrain.lab.compare import Claim, Experiment, Headline, Measured, Trained, at_rate
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World, worked
from posttrain.ledger import Ledger
from posttrain.methods import distillation, objectives, sdft
from posttrain.methods.distillation import Questions, given
from posttrain.methods.objectives import Objective, sampled_kl_p_q, sampled_kl_q_p, soft_kl_q_p
from posttrain.progress import metrics_line
from posttrain.rollouts import kl_from, sample_groups
from posttrain.runs import write_json
from posttrain.scale import pick
from posttrain.tasks.problem import Demonstration

# For LoRA on models of billions of parameters; not swept here. SFT and SDFT have the same.
FULL_RATE = 3e-4
RATES = (1e-4, 3e-4, 1e-3)
REPLAYED = 0.2  # share of replay's demonstrations that are of the old skill

# (start, world, folder, seed) -> what is imitated, and what making it cost
Source = Callable[[Stage, World, Path, int], tuple[list[Demonstration], Ledger]]


def first_config(world: World, seed: int) -> distillation.Config:
    """The first stage: the old skill by SFT, gently enough to leave in-context learning alive."""
    cfg = distillation.Config(
        prompts=pick(world.scale, smoke=4, laptop=32, full=32),
        group_size=1,
        steps=pick(world.scale, smoke=1, laptop=100, full=60),
        seed=seed,
    )
    return at_rate(cfg, world, 1e-3, full=2e-4)


def second_config(
    world: World, seed: int, rate: float | None = None, *, full: float = FULL_RATE
) -> sdft.Config:
    """The second stage, of every arm: the new skill, one text to each question of a step."""
    cfg = sdft.Config(
        prompts=pick(world.scale, smoke=4, laptop=32, full=32),
        group_size=1,
        max_tokens=world.max_tokens,
        steps=world.steps(smoke=2, laptop=40, full=100),
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=full)


def questions_of(world: World, tokenizer: Any) -> Questions:
    """What is asked about the new skill; the teacher sees the item's demonstration before it."""
    return Questions(
        world.train, world.prompt, sdft.own_demonstration, world.renderer(tokenizer).stop
    )


def shared_start(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Stage:
    """The old skill, taught by SFT: by the first arm of a seed, found by the others.

    Raises:
        ValueError: the world has no skill that is taught before its own.
    """
    if world.before is None:
        raise ValueError(f"the task {world.task!r} has no skill to be taught before it, and kept")
    old = world.before
    base = service.create_sampling_client(base_model=world.model).result()
    return _imitate(
        service, base, old, folder.parent / f"seed-{seed}-start", worked(old.train),
        first_config(world, seed), None,
    )  # fmt: skip


def _imitate(
    service: tinker.ServiceClient,
    sampler: tinker.SamplingClient,
    world: World,
    folder: Path,
    shown: Sequence[Demonstration],
    cfg: distillation.Config,
    start: str | None,
) -> Stage:
    """SFT: the loop of distillation on texts whose author's log-probabilities nobody knows."""
    tokenizer = sampler.get_tokenizer()
    texts = given(sdft.as_texts(world.renderer(tokenizer), shown))
    questions = Questions(world.train, world.prompt)
    return run_stage(
        service, world, folder,
        lambda policy, at: distillation.train(
            policy, sampler, questions, cfg, texts=texts, objective=sampled_kl_q_p, start=at
        ),
        cfg, start=start, extra={"demonstrations": len(shown)}, show=("divergence",),
    )  # fmt: skip


def new_only(
    first: Stage, world: World, folder: Path, seed: int
) -> tuple[list[Demonstration], Ledger]:
    """Demonstrations of the new skill."""
    return worked(world.train), Ledger()


def with_replay(
    first: Stage, world: World, folder: Path, seed: int
) -> tuple[list[Demonstration], Ledger]:
    """The same, with so many of the old skill among them that these are a share of REPLAYED."""
    assert world.before is not None  # there was a first stage
    new = worked(world.train)
    count = round(len(new) * REPLAYED / (1 - REPLAYED))
    return new + worked(world.before.train[:count]), Ledger()


def rewriting(
    first: Stage, world: World, folder: Path, seed: int
) -> tuple[list[Demonstration], Ledger]:
    """Demonstrations as the start retells them, where that is right."""
    return _retold(first, world, folder, seed, sdft.rewritten)


def own_answers(
    first: Stage, world: World, folder: Path, seed: int
) -> tuple[list[Demonstration], Ledger]:
    """The right answers of the start, when it is shown a demonstration, and no others."""
    return _retold(first, world, folder, seed, sdft.own_right_answers)


def _retold(
    first: Stage, world: World, folder: Path, seed: int, how: Callable[..., sdft.Rewrites]
) -> tuple[list[Demonstration], Ledger]:
    """Two answers to each question, sampled once, and kept beside the run for when it resumes."""
    kept = folder.with_name(f"{folder.name}-texts.json")
    if not kept.exists():
        questions = questions_of(world, first.sampler.get_tokenizer())
        found = how(first.sampler, questions, replace(second_config(world, seed), group_size=2))
        write_json(kept, asdict(found))
    stored = json.loads(kept.read_text())
    cost = Ledger()
    cost.sample(stored["sampled_tokens"], world.parameters)
    shown = [Demonstration(d["question"], d["answer"]) for d in stored["demonstrations"]]
    return shown, cost


def imitate(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    full: float = FULL_RATE,
    source: Source = new_only,
) -> Trained:
    """First stage, then SFT on what `source` gives: all arms that do without a teacher."""
    first = shared_start(service, world, folder, seed)
    shown, made = source(first, world, folder, seed)
    cfg = second_config(world, seed, rate, full=full)
    stage = _imitate(service, first.sampler, world, folder, shown, cfg, first.checkpoint)
    cost = first.cost(world.parameters) + made + stage.cost(world.parameters)
    return Trained(stage, cost, first.sampler)


def distil(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    full: float = FULL_RATE,
    objective: Objective = soft_kl_q_p,
    refresh: int = 0,
) -> Trained:
    """First stage, then SDFT. The teacher is the start, or what the student was at the last
    multiple of `refresh` steps."""
    first = shared_start(service, world, folder, seed)
    cfg = replace(second_config(world, seed, rate, full=full), refresh=refresh)
    questions = questions_of(world, first.sampler.get_tokenizer())
    teacher = None if refresh else first.sampler
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sdft.train(
            policy, teacher, questions, cfg, objective=objective, start=at
        ),
        cfg, start=first.checkpoint, extra={"objective": objective.__name__},
        show=("divergence", "entropy", "length"),
    )  # fmt: skip
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    return Trained(stage, cost, first.sampler)


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The first stage alone: what there is to keep, and nothing new."""
    first = shared_start(service, world, folder, seed)
    return Trained(first, first.cost(world.parameters), first.sampler)


def on_both_skills(trained: Trained, world: World) -> Measured:
    """Right answers to held-out questions about the new skill and about the old one, the mean of
    both, and on each KL(policy || start) in nats an answer, on one sample of each.

    What was gained of the new skill, and lost of the old one, are differences to the start, which
    is an arm of its own: they are claimed with their intervals.

    `new/as_shown` is the share of answers that are right and also have what all demonstrations
    share though any other would do, where the task has such a thing: for cards, the mark.

    Raises:
        ValueError: there is no old skill, or the arm did not say where the policy started.
    """
    if world.before is None or trained.reference is None:
        raise ValueError("two skills are measured: a first skill, and a start, are needed")
    metrics: dict[str, float] = {}
    items: dict[str, list[float]] = {}
    for skill, here in (("new", world), ("old", world.before)):
        found = on_skill(trained.stage.sampler, trained.reference, here)
        metrics |= {
            f"{skill}/pass@1": found.score.pass_at_1.value,
            f"{skill}/greedy": found.score.greedy.value,
            f"{skill}/kl": found.kl,
        }
        if found.as_shown is not None:
            metrics[f"{skill}/as_shown"] = found.as_shown
        items[f"{skill}/pass@1"] = (found.score.correct_counts / found.score.k).tolist()
    metrics["both/pass@1"] = (metrics["new/pass@1"] + metrics["old/pass@1"]) / 2
    return Measured(metrics, items, metrics_line(metrics, [*metrics]))


@dataclass(frozen=True)
class Skill:
    """What a policy can do of one skill, and how far it has moved there."""

    score: Score
    kl: float  # KL(policy || start), nats an answer, on one sample of each item
    as_shown: float | None  # share of these samples that `as_shown`; None where the task has none

    def __str__(self) -> str:
        return f"{self.score.pass_at_1}, KL {self.kl:.2f}"


def on_skill(sampler: tinker.SamplingClient, start: tinker.SamplingClient, world: World) -> Skill:
    """Measure a policy on the world's held-out items, beside the `start` that it comes from."""
    tokenizer = sampler.get_tokenizer()
    limit, stop = world.max_tokens, world.renderer(tokenizer).stop
    score = evaluate(sampler, world.test, world.k, prompt=world.prompt, stop=stop, max_tokens=limit)
    prompts = [world.prompt(tokenizer, item.question) for item in world.test]
    groups = sample_groups(sampler, tokenizer, prompts, 1, max_tokens=limit, seed=1, stop=stop)
    answers = [rollout for (rollout,) in groups]
    shown = [
        item.as_shown(answer.text)
        for item, answer in zip(world.test, answers, strict=True)
        if hasattr(item, "as_shown")
    ]
    return Skill(score, kl_from(start, answers), sum(shown) / len(shown) if shown else None)


EXPERIMENT = Experiment(
    name="methods/sdft",
    arms={
        "start": start_only,
        "SFT": partial(imitate, rate=3e-4),
        "SFT at a third": partial(imitate, rate=1e-4, full=FULL_RATE / 3),
        "SFT at triple": partial(imitate, rate=1e-3, full=FULL_RATE * 3),
        "SFT with replay": partial(imitate, rate=3e-4, source=with_replay),
        "SDFT": partial(distil, rate=3e-4),
        "SDFT at a third": partial(distil, rate=1e-4, full=FULL_RATE / 3),
        "SDFT at triple": partial(distil, rate=1e-3, full=FULL_RATE * 3),
        "SDFT refreshed": partial(distil, rate=3e-4, refresh=10),
        "SDFT reverse KL": partial(distil, rate=3e-4, objective=sampled_kl_p_q),
        "rewriting": partial(imitate, rate=3e-4, source=rewriting),
        "own right answers": partial(imitate, rate=3e-4, source=own_answers),
    },
    claims=[
        Claim("SDFT teaches the new skill", "SDFT", "start", "new/pass@1"),
        Claim("SDFT keeps more of the old skill than SFT", "SDFT", "SFT", "old/pass@1"),
        Claim("SDFT is better than SFT at both skills together", "SDFT", "SFT", "both/pass@1"),
        Claim("At three times the rate, SDFT is better than SFT at both skills together",
              "SDFT at triple", "SFT at triple", "both/pass@1"),
        Claim("SDFT is better at both than SFT with replay of the old skill",
              "SDFT", "SFT with replay", "both/pass@1"),
        Claim("SFT moves further from the start than SDFT on the new skill, in nats an answer",
              "SFT", "SDFT", "new/kl"),
        Claim("SFT learns the mark of the demonstrations, which they do not teach in a prompt",
              "SFT", "SDFT", "new/as_shown"),
    ],
    # Variants take the rate of SDFT, and the two that imitate what the model wrote that of SFT.
    rates={"SFT": RATES, "SFT with replay": RATES, "SDFT": RATES},
    headline=Headline("start", "SDFT", "SFT", "both/pass@1"),
    configs=lambda world: {
        "first stage": asdict(first_config(world, 0)),
        "second stage": asdict(second_config(world, 0)),
        "replayed": REPLAYED,
    },
    sources=[distillation, objectives, sdft, sys.modules[__name__]],
    measure=on_both_skills,
    chosen_by=("new/pass@1", "old/pass@1"),
    swept=1.0,  # what is forgotten depends on how far one goes
    tasks=("continual", "gsm8k-records"),
)  # fmt: skip

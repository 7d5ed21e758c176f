"""The arms of the rubric lesson: a cold start, RL against a judge of criteria, and its controls.

All arms of a seed share the start and the judge. They differ in what is made of its credits, in
who says them, in the price of moving away, and the control in how it learns from them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import tinker

from posttrain.lab import judged, texts
from posttrain.lab.arms.rlvr import FULL_RL, cold_start_config, shared_start
from posttrain.lab.arms.sft import FULL_RATE as FULL_SFT
from posttrain.lab.compare import Claim, Experiment, Headline, Trained, at_rate
from posttrain.lab.judged import on_judged_texts, watched
from posttrain.lab.raters import Rater, rater_of
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World, parameters_of
from posttrain.ledger import Ledger
from posttrain.methods import rlhf, rlvr, rubric_judges, rubric_rl, sft
from posttrain.methods.rlhf import best_of_groups, kl_priced
from posttrain.methods.rlvr import Reward
from posttrain.methods.rubric_judges import Ask, Judge, language_judge, plainly
from posttrain.methods.rubric_rl import (
    Exact,
    essential_gate,
    exact_of,
    holistic_reward,
    rubric_reward,
    weighted_sum,
)
from posttrain.runs import write_json
from posttrain.scale import Scale, pick
from posttrain.tasks.criteria import Kind
from posttrain.tasks.problem import Demonstration
from posttrain.tasks.rubrics import check

# What a program answers for: whether another animal comes, and whether a sentence comes twice. Of
# the first the shipped judge knows no more than a coin (models/judge/README.md), and the second
# pleases it in other criteria. Counting settles both, and every rubric of a story has one of them.
CHECKED = (Kind.STRANGER, Kind.TWICE)

# Points of a rubric, whose most is 1, for a nat of KL. The judge was trained on readable stories:
# a policy that moves away for nothing soon writes texts that it cannot judge.
PRICE = 0.02


@dataclass(frozen=True)
class Ready:
    """What RL and its control begin with."""

    first: Stage
    rater: Rater
    model: tinker.SamplingClient  # that judges
    ask: Ask

    @property
    def judge(self) -> Judge:
        """Criterion by criterion."""
        return language_judge(self.model, self.ask)


Paid = Callable[[Ready], Reward]  # what an arm pays for


def ask_of(world: World) -> Ask:
    """How criteria are put to the judge: the shipped one knows these questions."""
    return plainly if world.scale is Scale.FULL else str


def judge_of(service: tinker.ServiceClient, world: World) -> tinker.SamplingClient:
    """The model that judges criteria in this world.

    Raises:
        ValueError: no model does, or there are no rubrics for the world's items.
    """
    if world.task != "rubrics" or world.judge is None:
        raise ValueError(f"the task {world.task!r} has no judge of criteria; rubrics has one")
    return service.create_sampling_client(base_model=world.judge).result()


def rubric_config(world: World, seed: int, rate: float | None = None) -> rlvr.Config:
    """The configuration of the rubric lesson at the world's scale. The judge computes several times
    as much as the policy, so a step has fewer stories than those of other lessons."""
    scale = world.scale
    cfg = rlvr.Config(
        steps=world.steps(smoke=2, laptop=24, full=100),
        prompts=pick(scale, smoke=2, laptop=4, full=32),
        group_size=pick(scale, smoke=3, laptop=8, full=16),
        max_tokens=world.max_tokens,
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_RL)


def control_config(world: World, seed: int, rate: float | None = None) -> sft.Config:
    """The same budget for SFT: as many steps, and as many answers a step."""
    budget = rubric_config(world, seed)
    cfg = sft.Config(
        steps=budget.steps, batch_size=budget.prompts * budget.group_size, seed=seed
    )  # fmt: skip
    return at_rate(cfg, world, rate, full=FULL_SFT)


def prepared(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Ready:
    """The start, made by the first arm of a seed and found by the others, and the judge."""
    model = judge_of(service, world)
    first = shared_start(service, world, folder, seed)
    return Ready(first, rater_of(service, world), model, ask_of(world))


def summed(ready: Ready, exact: Exact | None = None) -> Reward:
    """The weighted sum of the judge's credits, or of a program's where it answers."""
    return rubric_reward(ready.judge, weighted_sum, exact=exact, truth=check)


def gated(ready: Ready) -> Reward:
    """The same behind the gate of what is essential."""
    return rubric_reward(ready.judge, essential_gate, truth=check)


def whole(ready: Ready) -> Reward:
    """One question about the whole rubric."""
    return holistic_reward(ready.model, ready.ask)


def checked(ready: Ready) -> Reward:
    """The weighted sum with some criteria checked by a program."""
    return summed(ready, exact_of(*CHECKED))


def practise(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    paid: Paid = summed,
    beta: float = PRICE,
) -> Trained:
    """RL from the start, paid as `paid` says minus beta points for each nat of KL from the start;
    exact scores and gold are only watched."""
    ready = prepared(service, world, folder, seed)
    cfg, first = rubric_config(world, seed, rate), ready.first
    reward = kl_priced(watched(paid(ready), ready.rater), first.sampler, beta)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: rlvr.train(policy, world.train, cfg, reward=reward, start=at), cfg,
        start=first.checkpoint, extra={"paid": paid.__name__, "beta": beta},
        show=("judged", "exact", "kl", "length"),
    )  # fmt: skip
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    # The ledger took the judge for a model of the policy's size.
    scored = sum(line["judge_tokens"] for line in stage.metrics)
    cost.flops += 2 * scored * (parameters_of(world.judge or "") - world.parameters)
    return _trained(ready, stage, cost)


def imitate_best(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Rejection sampling: SFT on the best of each group by the weighted sum of the same judge, with
    RL's number of samples and steps."""
    ready = prepared(service, world, folder, seed)
    budget, first = rubric_config(world, seed), ready.first
    kept = folder.parent / f"seed-{seed}-best.json"
    if not kept.exists():
        found = best_of_groups(first.sampler, world.train, budget, reward=summed(ready))
        write_json(kept, asdict(found))
    stored = json.loads(kept.read_text())
    best = [Demonstration(d["question"], d["answer"]) for d in stored["demonstrations"]]
    cfg = control_config(world, seed, rate)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, best, cfg, start=at), cfg,
        start=first.checkpoint, extra={"demonstrations": len(best)}, show=("loss",),
    )  # fmt: skip
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    cost.sample(stored["sampled_tokens"], world.parameters)
    cost.score(stored["scored_tokens"], parameters_of(world.judge or ""))
    return _trained(ready, stage, cost)


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The cold start itself, which the others are compared with; the judge reads it too."""
    ready = prepared(service, world, folder, seed)
    return _trained(ready, ready.first, ready.first.cost(world.parameters))


def _trained(ready: Ready, stage: Stage, cost: Ledger) -> Trained:
    return Trained(stage, cost, ready.first.sampler, ready.rater, judge=ready.judge)


EXPERIMENT = Experiment(
    name="methods/rubric_rl",
    arms={
        "SFT start": start_only,
        "weighted sum": partial(practise, rate=1e-3),
        "without a price": partial(practise, rate=1e-3, beta=0.0),
        "essential gate": partial(practise, rate=1e-3, paid=gated),
        "holistic": partial(practise, rate=1e-3, paid=whole),
        "partly checked": partial(practise, rate=1e-3, paid=checked),
        "rejection sampling": partial(imitate_best, rate=6e-3),
    },
    claims=[
        Claim("Rubric RL's stories are better than those of the start, by a quality that is in no "
              "rubric", "weighted sum", "SFT start", "test/gold"),
        Claim("They are better than those of SFT on the best of each group by the same judge, at "
              "equal budget", "weighted sum", "rejection sampling", "test/gold"),
        Claim("They meet more of their rubrics, by the exact check",
              "weighted sum", "SFT start", "test/exact"),
        Claim("The judge is pleased beyond that: it pays more for nothing than at the start",
              "weighted sum", "SFT start", "test/overpaid"),
        Claim("Without a price for KL the judge pays more for nothing",
              "without a price", "weighted sum", "test/overpaid"),
        Claim("With a price the stories are better than without one",
              "weighted sum", "without a price", "test/gold"),
        Claim("The gate leaves more stories with all that is essential than the sum does",
              "essential gate", "weighted sum", "test/essentials"),
        Claim("Asked about one criterion after the other, the judge teaches to meet more of them "
              "than asked about all together", "weighted sum", "holistic", "test/exact"),
        Claim("With pitfalls checked by a program the judge pays less for nothing",
              "weighted sum", "partly checked", "test/overpaid"),
        Claim("With pitfalls checked by a program more of the rubric is met",
              "partly checked", "weighted sum", "test/exact"),
        Claim("With pitfalls checked by a program the stories are better",
              "partly checked", "weighted sum", "test/gold"),
    ],
    rates={
        "weighted sum": (1e-3, 2e-3, 3e-3),
        "rejection sampling": (1e-3, 3e-3, 6e-3),
    },
    headline=Headline("SFT start", "weighted sum", "rejection sampling", "test/gold"),
    configs=lambda world: {
        "cold start": asdict(cold_start_config(world, 0)),
        "rubric_rl": asdict(rubric_config(world, 0)),
        "control": asdict(control_config(world, 0)),
        "judge": world.judge,
        "checked": [kind.name for kind in CHECKED],
        "price": PRICE,
    },
    sources=[
        rubric_rl, rubric_judges, rlvr, rlhf, sft, texts, judged, sys.modules[__name__],
    ],
    measure=on_judged_texts,
    chosen_by=("test/gold",),
    swept=1.0,
    tasks=("rubrics", "rubrics"),
)  # fmt: skip

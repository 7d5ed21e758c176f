"""The arms of the DPO lesson: a cold start, DPO from it, and its control at equal budget.

All arms of a seed share the start, and the pairs that were sampled from it and labelled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import tinker
from torch import Tensor

from posttrain import pairs as pairing
from posttrain.lab import texts
from posttrain.lab.arms.rlvr import cold_start_config, shared_start
from posttrain.lab.arms.sft import FULL_RATE as FULL_SFT
from posttrain.lab.compare import Claim, Experiment, Headline, Trained, at_rate
from posttrain.lab.raters import Rater, rater_of
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.texts import on_texts
from posttrain.lab.worlds import World
from posttrain.ledger import Ledger
from posttrain.methods import dpo, sft
from posttrain.pairs import fitting, sample_pairs
from posttrain.runs import write_json
from posttrain.scale import pick
from posttrain.tasks.problem import Demonstration, Preference

FULL_DPO = 1e-5  # usual for LoRA on models of billions of parameters; not swept here

# (start, who labels, world, folder, seed) -> labelled pairs, and what getting them cost
Source = Callable[[Stage, Rater, World, Path, int], tuple[list[Preference], Ledger]]


def dpo_config(world: World, seed: int, rate: float | None = None) -> dpo.Config:
    """The configuration of the DPO lesson at the world's scale."""
    cfg = dpo.Config(
        steps=world.steps(smoke=2, laptop=48, full=300),
        batch_size=pick(world.scale, smoke=4, laptop=16, full=32),
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_DPO)


def beta_of(world: World) -> float:
    """The price of a nat of KL. Where labels follow quality, the loss asks for a margin h of the
    difference in quality over beta. A story has some 20 nats to give: the usual 0.1, made for long
    answers, would ask for more than there is, and hold nothing back.
    """
    return pick(world.scale, smoke=0.5, laptop=0.5, full=0.1)


def control_config(world: World, seed: int, rate: float | None = None) -> sft.Config:
    """The same budget for SFT: as many steps, and as many answers a step, two for each pair."""
    budget = dpo_config(world, seed)
    cfg = sft.Config(steps=budget.steps, batch_size=2 * budget.batch_size, seed=seed)
    return at_rate(cfg, world, rate, full=FULL_SFT)


def longest_pair(world: World) -> int:
    """Tokens of a question with an answer: the question may take as much as the answer."""
    return 2 * world.max_tokens


def on_policy(
    first: Stage, rater: Rater, world: World, folder: Path, seed: int
) -> tuple[list[Preference], Ledger]:
    """Pairs of the start's own answers: sampled by the first arm, found by the others."""
    kept = folder.parent / f"seed-{seed}-pairs.json"
    if not kept.exists():
        found = sample_pairs(
            first.sampler, world.train, rater.label, max_tokens=world.max_tokens, seed=seed
        )
        write_json(kept, asdict(found))
    stored = json.loads(kept.read_text())
    cost = Ledger()
    cost.sample(stored["sampled_tokens"], world.parameters)
    shown = [Preference(**preference) for preference in stored["preferences"]]
    return fitting(first.sampler.get_tokenizer(), shown, longest_pair(world)), cost


def off_policy(
    first: Stage, rater: Rater, world: World, folder: Path, seed: int
) -> tuple[list[Preference], Ledger]:
    """Pairs that others wrote about the same items, no more than `on_policy` has, at no cost."""
    wanted = len(on_policy(first, rater, world, folder, seed)[0])
    tokenizer = first.sampler.get_tokenizer()
    return fitting(tokenizer, world.preferences, longest_pair(world))[:wanted], Ledger()


def prefer(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    source: Source = on_policy,
    loss: Callable[..., Tensor] = dpo.dpo_loss,
    beta: float | None = None,
) -> Trained:
    """Cold start, then DPO, or another loss of its family, on pairs from `source`; `beta` is by
    default that of the world."""
    rater, first = rater_of(service, world), shared_start(service, world, folder, seed)
    shown, cost = source(first, rater, world, folder, seed)
    pairs = dpo.score_pairs(first.sampler, shown, max_tokens=longest_pair(world))
    cost.score(sum(pair.tokens for pair in pairs), world.parameters)
    cfg, beta = dpo_config(world, seed, rate), beta_of(world) if beta is None else beta
    bound = partial(loss, beta=beta)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: dpo.train(policy, pairs, cfg, loss=bound, start=at), cfg,
        start=first.checkpoint,
        extra={"pairs": len(pairs), "source": source.__name__, "loss": loss.__name__, "beta": beta},
        show=("loss", "accuracy", "margin", "chosen_change", "rejected_change"),
    )  # fmt: skip
    total = first.cost(world.parameters) + cost + stage.cost(world.parameters)
    return Trained(stage, total, first.sampler, rater)


def imitate_chosen(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Cold start, then SFT on the chosen answers: the control, which never sees a rejected one."""
    rater, first = rater_of(service, world), shared_start(service, world, folder, seed)
    shown, cost = on_policy(first, rater, world, folder, seed)
    cfg = control_config(world, seed, rate)
    chosen = [Demonstration(pair.question, pair.chosen) for pair in shown]
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, chosen, cfg, start=at), cfg,
        start=first.checkpoint, extra={"demonstrations": len(chosen)}, show=("loss",),
    )  # fmt: skip
    total = first.cost(world.parameters) + cost + stage.cost(world.parameters)
    return Trained(stage, total, first.sampler, rater)


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The cold start itself: where DPO and its control begin, and what they are compared with."""
    rater, first = rater_of(service, world), shared_start(service, world, folder, seed)
    return Trained(first, first.cost(world.parameters), first.sampler, rater)


EXPERIMENT = Experiment(
    name="methods/dpo",
    arms={
        "SFT start": start_only,
        "DPO": partial(prefer, rate=1e-3),
        "DPO with NLL": partial(prefer, rate=1e-3, loss=dpo.dpo_nll_loss),
        "DPO off-policy": partial(prefer, rate=1e-3, source=off_policy),
        "SFT on chosen": partial(imitate_chosen, rate=6e-3),
    },
    claims=[
        Claim("DPO's stories are better than those of the start", "DPO", "SFT start", "test/gold"),
        Claim("DPO's stories are better than those of SFT on the chosen answers, at equal budget",
              "DPO", "SFT on chosen", "test/gold"),
        Claim("DPO wins more often against the start than SFT on the chosen answers",
              "DPO", "SFT on chosen", "test/win_rate"),
        Claim("Pairs of the policy's own answers serve DPO better than pairs of people's stories",
              "DPO", "DPO off-policy", "test/gold"),
    ],
    rates={
        "DPO": (1e-4, 3e-4, 1e-3, 3e-3),
        "DPO with NLL": (1e-4, 3e-4, 1e-3, 3e-3),
        "DPO off-policy": (1e-4, 3e-4, 1e-3, 3e-3),
        "SFT on chosen": (1e-3, 3e-3, 6e-3),
    },
    headline=Headline("SFT start", "DPO", "SFT on chosen", "test/gold"),
    configs=lambda world: {
        "cold start": asdict(cold_start_config(world, 0)),
        "dpo": {**asdict(dpo_config(world, 0)), "beta": beta_of(world)},
        "control": asdict(control_config(world, 0)),
    },
    sources=[dpo, sft, pairing, texts, sys.modules[__name__]],
    measure=on_texts,
    chosen_by=("test/gold",),
    tasks=("stories", "ultrafeedback"),
)  # fmt: skip

"""The arms of the RLVR lesson: a cold start, RL from it, and its control at equal budget."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import tinker

from posttrain.lab.arms.sft import FULL_RATE as FULL_SFT
from posttrain.lab.compare import Claim, Experiment, Headline, Trained, at_rate
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World
from posttrain.methods import rlvr, sft
from posttrain.runs import write_json
from posttrain.scale import pick

FULL_RL = 4e-5  # usual for LoRA on models of billions of parameters; not swept here


def cold_start_config(world: World, seed: int, rate: float | None = None) -> sft.Config:
    """A short SFT on people's own solutions: what RLVR starts from."""
    scale = world.scale
    cfg = sft.Config(
        learning_rate=pick(scale, smoke=6e-3, laptop=3e-3, full=FULL_SFT),
        steps=pick(scale, smoke=30, laptop=60, full=60),
        batch_size=pick(scale, smoke=8, laptop=32, full=32),
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_SFT)


def cold_start(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Stage:
    """The SFT stage: learn the format, and to reason aloud, as people do it."""
    cfg, shown = cold_start_config(world, seed, rate), world.demonstrations
    return run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, shown, cfg, start=at), cfg,
        extra={"demonstrations": len(shown)}, show=("loss",),
    )  # fmt: skip


def rlvr_config(world: World, seed: int, rate: float | None = None) -> rlvr.Config:
    """The configuration of the RLVR lesson at the world's scale."""
    scale = world.scale
    cfg = rlvr.Config(
        steps=world.steps(smoke=2, laptop=60, full=100),
        prompts=pick(scale, smoke=4, laptop=16, full=32),
        group_size=pick(scale, smoke=4, laptop=8, full=16),
        max_tokens=world.max_tokens,
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_RL)


def reinforce(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    **variant: Any,
) -> Trained:
    """Cold start, then RLVR; `variant` goes to `rlvr.train` (reward, advantages, loss)."""
    first = shared_start(service, world, folder, seed)
    cfg = rlvr_config(world, seed, rate)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: rlvr.train(
            policy, world.train, cfg,
            play=world.play, reference=first.sampler, start=at, **variant,
        ),
        cfg, start=first.checkpoint,
        extra={name: getattr(value, "__name__", value) for name, value in variant.items()},
        show=("reward", "no_contrast", "entropy", "length"),
    )  # fmt: skip
    return Trained(stage, first.cost(world.parameters) + stage.cost(world.parameters))


def select(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Cold start, then rejection-sampling fine-tuning with RLVR's number of samples and steps."""
    first = shared_start(service, world, folder, seed)
    budget = rlvr_config(world, seed)
    kept = folder.parent / f"seed-{seed}-samples.json"
    if not kept.exists():
        shown, tokens = rlvr.rejection_sample(first.sampler, world.train, budget, play=world.play)
        write_json(kept, {"tokens": tokens, "shown": [asdict(d) for d in shown]})
    stored = json.loads(kept.read_text())
    shown = [sft.Demonstration(**{**d, "turns": tuple(d["turns"])}) for d in stored["shown"]]
    cfg = sft.Config(
        steps=budget.steps, batch_size=budget.prompts * budget.group_size, seed=seed,
    )  # fmt: skip
    cfg = at_rate(cfg, world, rate, full=FULL_SFT)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, shown, cfg, start=at), cfg,
        start=first.checkpoint, extra={"kept": len(shown)}, show=("loss",),
    )  # fmt: skip
    cost = first.cost(world.parameters) + stage.cost(world.parameters)
    cost.sample(stored["tokens"], world.parameters)
    return Trained(stage, cost)


def start_only(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """The cold start itself: where both RL and its control begin."""
    if rate is None:
        first = shared_start(service, world, folder, seed)
    else:
        first = cold_start(service, world, folder, seed, rate=rate)
    return Trained(first, first.cost(world.parameters))


def shared_start(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Stage:
    """The start that all arms of a seed share: trained by the first, found by the others."""
    return cold_start(service, world, folder.parent / f"seed-{seed}-start", seed)


EXPERIMENT = Experiment(
    name="methods/rlvr",
    arms={
        "SFT start": start_only,
        "RLVR": partial(reinforce, rate=1e-3),
        "rejection sampling": partial(select, rate=3e-3),
    },
    claims=[
        Claim("RLVR beats the SFT policy it starts from", "RLVR", "SFT start", "test/pass@1"),
        Claim("RLVR beats it in greedy decoding too", "RLVR", "SFT start", "test/greedy"),
        Claim("RLVR beats rejection-sampling fine-tuning at equal budget",
              "RLVR", "rejection sampling", "test/pass@1"),
    ],
    rates={
        "SFT start": (1e-3, 3e-3, 6e-3),
        "RLVR": (3e-4, 1e-3, 2e-3, 3e-3),
        "rejection sampling": (1e-3, 3e-3, 6e-3, 1e-2),
    },
    headline=Headline("SFT start", "RLVR", "rejection sampling", "test/pass@1"),
    configs=lambda world: {
        "cold start": asdict(cold_start_config(world, 0)),
        "rlvr": asdict(rlvr_config(world, 0)),
    },
    sources=[sft, rlvr, sys.modules[__name__]],
)  # fmt: skip

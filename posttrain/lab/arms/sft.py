"""The arms of the SFT lesson: chain of thought against answer only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import tinker

from posttrain.lab.compare import Claim, Experiment, Headline, Trained, at_rate
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World, bare, worked
from posttrain.ledger import Ledger
from posttrain.methods import sft
from posttrain.scale import pick

FULL_RATE = 2e-4  # usual for LoRA on models of billions of parameters; not swept here


def sft_config(world: World, seed: int, rate: float | None = None) -> sft.Config:
    """The configuration of the SFT lesson at the world's scale."""
    cfg = sft.Config(
        steps=world.steps(smoke=4, laptop=120, full=200),
        batch_size=pick(world.scale, smoke=8, laptop=32, full=64),
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_RATE)


def imitate(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    target: Callable[[Sequence[Any]], list[Any]],
    rate: float | None = None,
) -> Trained:
    """SFT on the answers that `target` makes of the training problems."""
    cfg = sft_config(world, seed, rate)
    shown = target(world.train[: pick(world.scale, smoke=32, laptop=1000, full=None)])
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, shown, cfg, start=at), cfg,
        extra={"target": target.__name__, "demonstrations": len(shown)}, show=("loss",),
    )  # fmt: skip
    return Trained(stage, stage.cost(world.parameters))


def untrained(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The base model itself, asked in the chat format."""
    policy = service.create_lora_training_client(world.model, rank=world.rank, seed=seed).result()
    checkpoint = policy.save_state(f"untrained-{seed}", overwrite=True).result().path
    sampler = policy.save_weights_and_get_sampling_client().result()
    return Trained(Stage(policy, sampler, checkpoint, [], folder), Ledger())


EXPERIMENT = Experiment(
    name="methods/sft",
    arms={
        "base": untrained,
        "chain of thought": partial(imitate, target=worked, rate=2e-3),
        "answer only": partial(imitate, target=bare, rate=1e-3),
    },
    claims=[
        Claim("CoT beats answer-only on held-out problems",
              "chain of thought", "answer only", "test/pass@1"),
        Claim("CoT beats answer-only on longer problems than trained on",
              "chain of thought", "answer only", "ood/pass@1"),
        Claim("CoT keeps a larger share of its accuracy there",
              "chain of thought", "answer only", "ood/kept"),
    ],
    rates={
        "chain of thought": (1e-3, 2e-3, 4e-3),
        "answer only": (1e-3, 2e-3, 4e-3),
    },
    headline=Headline("base", "chain of thought", "answer only", "test/pass@1"),
    configs=lambda world: {"sft": asdict(sft_config(world, 0))},
    sources=[sft, sys.modules[__name__]],
    longer=True,
    chosen_by=("test/pass@1", "ood/pass@1"),
    swept=1.0,  # fewer steps want higher rates, and those reach less far
)  # fmt: skip

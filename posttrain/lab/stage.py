"""One stage of post-training: a method driven to its end in a run folder, then measured.

A stage starts from the base model or from the checkpoint of another stage, resumes if it was
interrupted, and ends with a policy, its metrics and its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tinker

from posttrain.evals import Score, evaluate
from posttrain.lab.worlds import World
from posttrain.ledger import Ledger
from posttrain.runs import Metrics, Run, write_json

SAMPLES = "samples.json"  # in the run folder
# (policy, first step) -> metrics of each step: a method with its data and config bound.
Steps = Callable[[tinker.TrainingClient, int], Iterator[Metrics]]


@dataclass(frozen=True)
class Stage:
    """A finished stage."""

    policy: tinker.TrainingClient
    sampler: tinker.SamplingClient
    checkpoint: str  # tinker:// path, optimizer included: where the next stage starts
    metrics: list[Metrics]
    folder: Path

    def cost(self, parameters: int) -> Ledger:
        """What training this stage cost, for a model of so many parameters."""
        return Ledger.of(self.metrics, parameters)


def run_stage(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    steps: Steps,
    cfg: Any,
    *,
    start: str | None = None,
    extra: Mapping[str, Any] | None = None,
    show: Sequence[str] = (),
    every: int = 20,
) -> Stage:
    """Train `cfg.steps` steps in `folder`, or finish what an earlier run began there.

    Args:
        start: checkpoint to start from, with a fresh optimizer; None is the base model.
        extra: what else identifies this run, kept in its config.
        show: metrics on the progress line.
        every: steps between checkpoints.

    Raises:
        ValueError: the folder holds a run with another configuration.
    """
    config = {
        "task": world.task, "scale": str(world.scale), "model": world.model, "rank": world.rank,
        "start": start, **asdict(cfg), **(extra or {}),
    }  # fmt: skip
    run = Run.open(folder, config)
    if run.checkpoint is not None:
        future = service.create_training_client_from_state_with_optimizer(run.checkpoint)
    elif start is not None:
        future = service.create_training_client_from_state(start)
    else:
        future = service.create_lora_training_client(world.model, rank=world.rank, seed=cfg.seed)
    policy = future.result()
    metrics = run.drive(policy, steps(policy, run.step), total=cfg.steps, every=every, show=show)
    sampler = policy.save_weights_and_get_sampling_client().result()
    assert run.checkpoint is not None  # drive() has saved the last step
    keep_samples(sampler, world, folder / SAMPLES)
    return Stage(policy, sampler, run.checkpoint, metrics, folder)


def keep_samples(sampler: tinker.SamplingClient, world: World, path: Path, n: int = 2) -> None:
    """Greedy answers to the first `n` held-out items, unless they are there: for people to read."""
    items = [item for item in world.test[:n] if hasattr(item, "question")]
    if path.exists() or not items:
        return
    how: dict[str, Any] = {"max_tokens": world.max_tokens, "seed": 0, "temperature": 0.0}
    groups = world.play(sampler, items, 1, **how)
    pairs = zip(items, groups, strict=True)
    write_json(path, [{"question": i.question, "answer": "".join(g[0].turns)} for i, g in pairs])


def measure(sampler: tinker.SamplingClient, world: World) -> dict[str, Score]:
    """Scores on the held-out splits that the task has: `test`, and `ood` where there is one.

    Half as many samples as the main job takes, and half of the longer problems: a comparison
    repeats this for every arm and seed, and its interval comes from those.
    """
    k = max(world.k // 2, 1)
    how: dict[str, Any] = {"play": world.play, "max_tokens": world.max_tokens}
    scores = {"test": evaluate(sampler, world.test, k, **how)}
    if world.ood:
        longer = world.ood[: len(world.ood) // 2]
        scores["ood"] = evaluate(sampler, longer, max(k // 2, 1), **how)
    return scores

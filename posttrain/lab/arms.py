"""Controlled comparisons: the arms of each lesson, over paired seeds, into a results.json.

An arm is a function that trains one policy and returns it with its cost. All arms of an
experiment have the same budget, problems, evaluation items and seeds. Finished seeds are kept
in the run folder, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tinker

from posttrain.evals import Score
from posttrain.lab.stage import Stage, measure, run_stage
from posttrain.lab.worlds import World, bare, worked
from posttrain.ledger import Ledger
from posttrain.methods import rlvr, sft
from posttrain.runs import Metrics, git_commit, write_json, write_results
from posttrain.scale import Scale, pick
from posttrain.stats import mean_over_seeds, paired_difference

HOME = Path(__file__).resolve().parents[2]  # the checkout, where lessons keep their results


@dataclass(frozen=True)
class Trained:
    """What an arm leaves behind."""

    stage: Stage
    cost: Ledger  # everything this arm spent, also before its last stage


Worlds = Callable[[int], World]  # seed -> its world
# (service, world, folder, seed) -> a trained policy
Arm = Callable[[tinker.ServiceClient, World, Path, int], Trained]


@dataclass(frozen=True)
class Claim:
    """A difference that the experiment is about, fixed before it is run."""

    text: str
    arm: str
    baseline: str
    metric: str


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared, and what is claimed about them."""

    name: str  # its folder in the repository
    arms: Mapping[str, Arm]
    claims: Sequence[Claim]
    rates: Mapping[str, Sequence[float]]  # arm -> learning rates to try on validation
    longer: bool = False  # also measure on problems longer than any trained on


def parameters_of(service: tinker.ServiceClient, world: World) -> int:
    """Parameters of the model, for FLOP counts; 0 where the backend's model is not at hand."""
    from posttrain.connect import shipped_models

    directory = shipped_models().get(world.model)
    if directory is None:
        return 0
    return int(json.loads((directory / "training.json").read_text())["parameters"])


# Learning rates for LoRA on models of billions of parameters, where the swept ones are far too
# high; usual values, not swept here.
FULL_SFT, FULL_RL = 2e-4, 4e-5


def at_rate(cfg: Any, world: World, rate: float | None, *, full: float) -> Any:
    """`cfg` at a swept rate, which belongs to the shipped model, or at `full` for a real one."""
    if world.scale is Scale.FULL:
        return replace(cfg, learning_rate=full)
    return cfg if rate is None else replace(cfg, learning_rate=rate)


# --- SFT ---------------------------------------------------------------------------------------


def sft_config(world: World, seed: int, rate: float | None = None) -> sft.Config:
    """The configuration of the SFT lesson at the world's scale."""
    cfg = sft.Config(
        steps=world.steps(smoke=4, laptop=120, full=200),
        batch_size=pick(world.scale, smoke=8, laptop=32, full=64),
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_SFT)


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
    return Trained(stage, stage.cost(parameters_of(service, world)))


# --- RLVR --------------------------------------------------------------------------------------


def cold_start_config(world: World, seed: int) -> sft.Config:
    """SFT on few and short demonstrations: what RLVR starts from."""
    scale = world.scale
    return sft.Config(
        learning_rate=pick(scale, smoke=6e-3, laptop=1.5e-3, full=FULL_SFT),
        steps=pick(scale, smoke=15, laptop=60, full=60),
        batch_size=pick(scale, smoke=8, laptop=32, full=32),
        seed=seed,
    )


def cold_start(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Stage:
    """The SFT stage: learn the format, and to reason aloud, from short demonstrations."""
    cfg, shown = cold_start_config(world, seed), worked(world.first)
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
    first = cold_start(service, world, folder.parent / f"seed-{seed}-start", seed)
    cfg = rlvr_config(world, seed, rate)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: rlvr.train(
            policy, world.train, cfg, reference=first.sampler, start=at, **variant
        ),
        cfg, start=first.checkpoint,
        extra={name: getattr(value, "__name__", value) for name, value in variant.items()},
        show=("reward", "no_contrast", "entropy", "length"),
    )  # fmt: skip
    parameters = parameters_of(service, world)
    return Trained(stage, first.cost(parameters) + stage.cost(parameters))


def select(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Cold start, then rejection-sampling fine-tuning with RLVR's number of samples and steps."""
    first = cold_start(service, world, folder.parent / f"seed-{seed}-start", seed)
    budget = rlvr_config(world, seed)
    kept = folder.parent / f"seed-{seed}-samples.json"
    if not kept.exists():
        shown, tokens = rlvr.rejection_sample(first.sampler, world.train, budget)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"tokens": tokens, "shown": [asdict(d) for d in shown]})
    stored = json.loads(kept.read_text())
    shown = [sft.Demonstration(**d) for d in stored["shown"]]
    cfg = sft.Config(
        steps=budget.steps, batch_size=budget.prompts * budget.group_size, seed=seed,
    )  # fmt: skip
    cfg = at_rate(cfg, world, rate, full=FULL_SFT)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, shown, cfg, start=at), cfg,
        start=first.checkpoint, extra={"kept": len(shown)}, show=("loss",),
    )  # fmt: skip
    parameters = parameters_of(service, world)
    cost = first.cost(parameters) + stage.cost(parameters)
    cost.sample(stored["tokens"], parameters)
    return Trained(stage, cost)


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The cold start itself: where both RL and its control begin."""
    first = cold_start(service, world, folder.parent / f"seed-{seed}-start", seed)
    return Trained(first, first.cost(parameters_of(service, world)))


EXPERIMENTS = {
    "sft": Experiment(
        name="methods/sft",
        arms={
            "chain of thought": partial(imitate, target=worked, rate=6e-3),
            "answer only": partial(imitate, target=bare, rate=3e-3),
        },
        claims=[
            Claim("CoT beats answer-only on held-out problems",
                  "chain of thought", "answer only", "test/pass@1"),
            Claim("CoT beats answer-only on longer problems than trained on",
                  "chain of thought", "answer only", "ood/pass@1"),
        ],
        rates={"chain of thought": (1e-3, 3e-3, 6e-3, 1e-2), "answer only": (1e-3, 3e-3, 6e-3)},
        longer=True,
    ),
    "rlvr": Experiment(
        name="methods/rlvr",
        arms={
            "SFT start": start_only,
            "RLVR": partial(reinforce, rate=1e-3),
            "rejection sampling": partial(select, rate=6e-3),
        },
        claims=[
            Claim("RLVR beats the SFT policy it starts from", "RLVR", "SFT start", "test/pass@1"),
            Claim("RLVR beats it in greedy decoding too", "RLVR", "SFT start", "test/greedy"),
            Claim("RLVR beats rejection-sampling fine-tuning at equal budget",
                  "RLVR", "rejection sampling", "test/pass@1"),
        ],
        rates={"RLVR": (3e-4, 1e-3, 3e-3), "rejection sampling": (3e-4, 1e-3, 3e-3, 6e-3)},
    ),
}  # fmt: skip


def flat(scores: Mapping[str, Score]) -> dict[str, float]:
    """Numbers of one run by name, as `test/pass@1`."""
    return {
        f"{split}/{name}": value
        for split, s in scores.items()
        for name, value in {
            "pass@1": s.pass_at_1.value,
            f"pass@{s.k}": s.pass_at_k.value,
            "greedy": s.greedy.value,
            "well_formed": s.well_formed,
            "tokens": s.mean_tokens,
        }.items()
    }


def one_seed(
    service: tinker.ServiceClient,
    experiment: Experiment,
    worlds: Worlds,
    arm: str,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Train and measure one arm with one seed, or return what an earlier run measured."""
    folder = out / f"seed-{seed}-{arm.replace(' ', '-').lower()}"
    done = folder.with_name(f"{folder.name}.json")
    if not done.exists():
        world = worlds(seed) if experiment.longer else replace(worlds(seed), ood=())
        trained = experiment.arms[arm](service, world, folder, seed)
        scores = measure(trained.stage.sampler, world)
        items = {split: (s.correct_counts / s.k).tolist() for split, s in scores.items()}
        record = {
            "seed": seed,
            "metrics": flat(scores),
            "ledger": trained.cost.to_json(),
            "items": items,
            "curve": trained.stage.metrics,
        }
        write_json(done, record)
        print(f"{experiment.name}, {arm}, seed {seed}: {scores['test']}", flush=True)
    return json.loads(done.read_text())


def compare(
    service: tinker.ServiceClient,
    experiment: Experiment,
    worlds: Worlds,
    seeds: Sequence[int],
    out: Path,
    results: Path,
) -> dict[str, list[list[Metrics]]]:
    """Run all arms over all seeds; write results.json; return the training curves by arm.

    Runs and the measurements of single seeds are kept in `out`, the results in `results`.

    Each claim is the mean difference over paired seeds and items, with a 95 % t interval.
    """
    world = worlds(seeds[0])
    records = {
        arm: [one_seed(service, experiment, worlds, arm, seed, out) for seed in seeds]
        for arm in experiment.arms
    }
    total = Ledger()
    for runs in records.values():
        for record in runs:
            total = total + Ledger.from_json(record["ledger"])
    write_results(
        results,
        experiment.name,
        scale=world.scale,
        backend="embedded engine" if world.model.startswith("posttrain/") else "Tinker server",
        model=world.model,
        seeds=seeds,
        config=_config(experiment, world),
        arms={arm: _arm_record(runs) for arm, runs in records.items()},
        claims=[_verdict(claim, records) for claim in experiment.claims] if len(seeds) > 1 else [],
        ledger=total,
    )
    return {arm: [record["curve"] for record in runs] for arm, runs in records.items()}


def sweep(
    service: tinker.ServiceClient,
    experiment: Experiment,
    worlds: Worlds,
    out: Path,
    results: Path,
    seed: int = 100,
) -> dict[str, dict[str, float]]:
    """pass@1 on validation of each arm at each learning rate, at half the steps and a seed of
    its own, written to `results`/sweep.json. The arms' rates were chosen from it."""
    world = worlds(seed)
    world = replace(world, test=world.validation[:100], ood=[], k=min(world.k, 8), effort=0.5)
    table: dict[str, dict[str, float]] = {}
    for arm, run in experiment.arms.items():
        for rate in experiment.rates.get(arm, ()):
            name = f"{arm.replace(' ', '-').lower()}-{rate:g}"
            done = out / f"{name}.json"
            if not done.exists():
                trained = run(service, world, out / name, seed, rate=rate)  # type: ignore[call-arg]
                write_json(done, measure(trained.stage.sampler, world)["test"].pass_at_1.value)
            score = json.loads(done.read_text())
            table.setdefault(arm, {})[f"{rate:g}"] = score
            print(f"sweep, {arm}, learning rate {rate:g}: {score:.3f}", flush=True)
    write_json(results / "sweep.json", {"commit": git_commit(), "seed": seed, "pass@1": table})
    return table


def _config(experiment: Experiment, world: World) -> dict[str, Any]:
    configs = {"sft": asdict(sft_config(world, 0))} if experiment.name.endswith("sft") else {
        "cold start": asdict(cold_start_config(world, 0)), "rlvr": asdict(rlvr_config(world, 0)),
    }  # fmt: skip
    sizes: dict[str, Any] = {"rank": world.rank, "n_test": len(world.test), "task": world.task}
    sizes["rates"] = {
        name: arm.keywords["rate"]
        for name, arm in experiment.arms.items()
        if isinstance(arm, partial) and "rate" in arm.keywords
    }
    return {**configs, **sizes}


def _arm_record(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = runs[0]["metrics"]
    summary = {
        name: mean_over_seeds([run["metrics"][name] for run in runs]).to_json() for name in names
    } if len(runs) > 1 else {}  # fmt: skip
    kept = ("seed", "metrics", "ledger")
    return {"runs": [{key: run[key] for key in kept} for run in runs], "summary": summary}


def _verdict(claim: Claim, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    split, _, metric = claim.metric.partition("/")

    def values(arm: str) -> Any:
        if metric == "pass@1":
            return np.array([run["items"][split] for run in records[arm]])
        return np.array([run["metrics"][claim.metric] for run in records[arm]])

    gain = paired_difference(values(claim.arm), values(claim.baseline))
    return {
        "claim": claim.text, "metric": claim.metric, "arm": claim.arm, "baseline": claim.baseline,
        "difference": gain.value, "ci95": [gain.low, gain.high], "n_seeds": len(records[claim.arm]),
    }  # fmt: skip

"""Controlled comparisons: the arms of an experiment, over paired seeds, into a results.json.

An arm is a function that trains one policy and returns it with its cost. All arms of an
experiment have the same budget, problems, evaluation items and seeds. Finished seeds are kept
in the run folder, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tinker

from posttrain.evals import Score
from posttrain.lab.raters import Rater
from posttrain.lab.stage import Stage, measure
from posttrain.lab.worlds import World, world_of
from posttrain.ledger import Ledger
from posttrain.methods.rlvr import Reward
from posttrain.methods.rubric_judges import Judge
from posttrain.rollouts import Rollout
from posttrain.runs import Metrics, code_of, git_commit, write_json, write_results
from posttrain.scale import Scale
from posttrain.stats import mean_over_seeds, paired_difference


@dataclass(frozen=True)
class Picked:
    """Answers to the held-out items that somebody picked among a policy's samples."""

    groups: Sequence[Sequence[Rollout]]  # `world.k` to each of `world.test`
    kl: float  # from the policy that was sampled, nats per answer: no log-probability tells it


@dataclass(frozen=True)
class Trained:
    """What an arm leaves behind."""

    stage: Stage
    cost: Ledger  # everything this arm spent, also before its last stage
    reference: tinker.SamplingClient | None = None  # whom its texts are compared with,
    rater: Rater | None = None  # and by whom, where answers are not right or wrong
    reward: Reward | None = None  # learned from comparisons, where there is one
    picked: Picked | None = None  # its answers, where they are not samples of the stage's policy
    told: Mapping[str, float] = field(default_factory=dict)  # what else it says, a metric each
    past: Sequence[tinker.SamplingClient] = ()  # what a player was before, the start first
    judge: Judge | None = None  # of criteria, where its texts were paid for those


Worlds = Callable[[int], World]  # seed -> its world
# (service, world, folder, seed) -> a trained policy; those that are swept take rate= too
Arm = Callable[..., Trained]


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    metrics: dict[str, float]  # by split and name, as test/pass@1
    items: dict[str, list[float]]  # values on each item, of those metrics that are their means
    text: str  # one line for people


@dataclass(frozen=True)
class Claim:
    """A difference that the experiment is about, fixed before it is run."""

    text: str
    arm: str
    baseline: str
    metric: str


@dataclass(frozen=True)
class Headline:
    """The arms that tell the story in one line: where the method starts, what it reaches, and
    what its control reaches at equal budget."""

    start: str
    method: str
    control: str
    metric: str


def on_problems(trained: Trained, world: World) -> Measured:
    """Right answers on the held-out problems, sampled and greedy, and what share of that accuracy
    is kept on longer ones, where those are measured."""
    scores = measure(trained.stage.sampler, world)
    items = {f"{split}/pass@1": (s.correct_counts / s.k).tolist() for split, s in scores.items()}
    metrics = flat(scores)
    if "ood" in scores and metrics["test/pass@1"] > 0:
        metrics["ood/kept"] = metrics["ood/pass@1"] / metrics["test/pass@1"]
    return Measured(metrics, items, str(scores["test"]))


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared, and what is claimed about them."""

    name: str  # its folder in the repository
    arms: Mapping[str, Arm]
    claims: Sequence[Claim]
    rates: Mapping[str, Sequence[float]]  # arm -> learning rates to try on validation
    configs: Callable[[World], dict[str, Any]]  # what results.json says of how it was trained
    sources: Sequence[ModuleType]  # the code that the results belong to
    longer: bool = False  # also measure on problems longer than any trained on
    headline: Headline | Mapping[str, Headline] | None = None  # or one for each notebook
    measure: Callable[[Trained, World], Measured] = on_problems
    chosen_by: Sequence[str] = ("test/pass@1",)  # a sweep maximises their mean on validation
    swept: float = 0.5  # share of the usual steps that a sweep takes
    tasks: tuple[str, str] = ("math", "gsm8k")  # by default: below full scale, and at it

    @property
    def code(self) -> str:
        """Fingerprint of its sources."""
        return code_of(self.sources)

    def file(self, kind: str, task: str) -> str:
        """The name of its `results` or its `sweep`: those on another task stand beside its own."""
        return f"{kind}.json" if task == self.tasks[0] else f"{task}.{kind}.json"

    def world(self, scale: Scale, task: str | None, seed: int, model: str | None = None) -> World:
        """The world of `task`, or else of the task that this experiment is about.

        Raises:
            ValueError: an unknown task, or one without right answers where those are measured.
        """
        usual = self.tasks[scale is Scale.FULL]
        world = world_of(scale, task or usual, seed, model)
        if self.measure is on_problems and not world.graded:
            raise ValueError(f"{self.name} counts right answers; the task {task!r} has none")
        return world


def at_rate(cfg: Any, world: World, rate: float | None, *, full: float) -> Any:
    """`cfg` at a swept rate, which belongs to the shipped model, or at `full` for a real one."""
    if world.scale is Scale.FULL:
        return replace(cfg, learning_rate=full)
    return cfg if rate is None else replace(cfg, learning_rate=rate)


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
            **s.counts,
        }.items()
    }


def one_seed(
    service: tinker.ServiceClient,
    experiment: Experiment,
    worlds: Worlds,
    arm: str,
    seed: int,
    out: Path,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Train and measure one arm with one seed, or return what an earlier run measured.

    Args:
        made_by: the code and the configuration, kept with what is measured.

    Raises:
        ValueError: that run had other code or another configuration.
    """
    folder = out / f"seed-{seed}-{arm.replace(' ', '-').lower()}"
    done = folder.with_name(f"{folder.name}.json")
    if not done.exists():
        world = worlds(seed) if experiment.longer else replace(worlds(seed), ood=())
        trained = experiment.arms[arm](service, world, folder, seed)
        found = experiment.measure(trained, world)
        record = {
            "made_by": made_by,
            "seed": seed,
            "metrics": found.metrics,
            "ledger": trained.cost.to_json(),
            "items": found.items,
            "curve": trained.stage.metrics,
        }
        write_json(done, record)
        print(f"{experiment.name}, {arm}, seed {seed}: {found.text}", flush=True)
    record = json.loads(done.read_text())
    if record.get("made_by") != json.loads(json.dumps(made_by)):
        raise ValueError(
            f"{done} was measured with other code or settings than these; choose another folder "
            f"with --out, or delete {out} to start again"
        )
    return record


def compare(
    service: tinker.ServiceClient,
    experiment: Experiment,
    worlds: Worlds,
    seeds: Sequence[int],
    out: Path,
    results: Path,
) -> dict[str, list[list[Metrics]]]:
    """Run all arms over all seeds; write results.json; return the training curves by arm.

    Runs and the measurements of single seeds are kept in `out`, the results in `results`; those on
    another task than the experiment's own are called TASK.results.json.

    Each claim is the mean difference over paired seeds and items, with a 95 % t interval. A claim
    about something that cannot be measured at this scale, as hidden quality of real texts, is left
    out.
    """
    world = worlds(seeds[0])
    made_by: dict[str, Any] = {"code": experiment.code, "config": _config(experiment, world)}
    records = {
        arm: [one_seed(service, experiment, worlds, arm, seed, out, made_by) for seed in seeds]
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
        config=made_by["config"],
        arms={arm: _arm_record(runs) for arm, runs in records.items()},
        claims=[_verdict(c, records) for c in experiment.claims if _can_be_told(c, records)],
        headline=_headline(experiment),
        ledger=total,
        code=made_by["code"],
        filename=experiment.file("results", world.task),
    )
    return {arm: [record["curve"] for record in runs] for arm, runs in records.items()}


def sweep(
    service: tinker.ServiceClient,
    experiment: Experiment,
    worlds: Worlds,
    out: Path,
    results: Path,
    seed: int = 100,
) -> dict[str, dict[str, dict[str, float]]]:
    """`experiment.chosen_by` on validation for each arm at each learning rate, with a share of the
    steps and a seed of its own, written to `results`/sweep.json, or TASK.sweep.json. Each arm has
    the rate at which the mean of these metrics is highest."""
    world = worlds(seed)
    longer = world.ood[len(world.ood) // 2 :] if experiment.longer else ()  # no test items
    world = replace(on_validation(world), ood=longer, effort=experiment.swept)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for arm, run in experiment.arms.items():
        for rate in experiment.rates.get(arm, ()):
            name = f"{arm.replace(' ', '-').lower()}-{rate:g}"
            done = out / f"{name}.json"
            if not done.exists():
                trained = run(service, world, out / name, seed, rate=rate)
                found = experiment.measure(trained, world)
                write_json(done, {metric: found.metrics[metric] for metric in experiment.chosen_by})
            scores = json.loads(done.read_text())
            for metric, score in scores.items():
                table.setdefault(metric, {}).setdefault(arm, {})[f"{rate:g}"] = score
            told = ", ".join(f"{metric} {score:.3f}" for metric, score in scores.items())
            print(f"sweep, {arm}, learning rate {rate:g}: {told}", flush=True)
    path = results / experiment.file("sweep", world.task)
    write_json(path, {"commit": git_commit(), "seed": seed, **table})
    return table


def on_validation(world: World) -> World:
    """The world with validation items in the place of test items, of its first skill too."""
    before = world.before and on_validation(world.before)
    return replace(world, test=world.validation[:100], k=min(world.k, 8), before=before)


def _config(experiment: Experiment, world: World) -> dict[str, Any]:
    rates = {
        name: arm.keywords["rate"]
        for name, arm in experiment.arms.items()
        if isinstance(arm, partial) and "rate" in arm.keywords
    }
    sizes = {"rank": world.rank, "n_test": len(world.test), "task": world.task, "rates": rates}
    return {**experiment.configs(world), **sizes}


def _headline(experiment: Experiment) -> dict[str, Any] | None:
    line = experiment.headline
    if isinstance(line, Mapping):
        return {notebook: asdict(one) for notebook, one in line.items()}
    return asdict(line) if line else None


def _arm_record(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in runs[0]["metrics"] if all(name in run["metrics"] for run in runs)]
    summary = {
        name: mean_over_seeds([run["metrics"][name] for run in runs]).to_json() for name in names
    } if len(runs) > 1 else {}  # fmt: skip
    kept = ("seed", "metrics", "ledger")
    return {"runs": [{key: run[key] for key in kept} for run in runs], "summary": summary}


def _can_be_told(claim: Claim, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    runs = [run for arm in (claim.arm, claim.baseline) for run in records[arm]]
    return len(records[claim.arm]) > 1 and all(claim.metric in run["metrics"] for run in runs)


def _verdict(claim: Claim, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    def values(arm: str) -> Any:
        if all(claim.metric in run["items"] for run in records[arm]):
            return np.array([run["items"][claim.metric] for run in records[arm]])
        return np.array([run["metrics"][claim.metric] for run in records[arm]])

    gain = paired_difference(values(claim.arm), values(claim.baseline))
    return {
        "claim": claim.text, "metric": claim.metric, "arm": claim.arm, "baseline": claim.baseline,
        "difference": gain.value, "ci95": [gain.low, gain.high], "n_seeds": len(records[claim.arm]),
    }  # fmt: skip

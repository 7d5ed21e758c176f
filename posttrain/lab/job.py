"""The main job: a base model, SFT, RLVR, and an honest before and after."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tinker
from rich.console import Console
from rich.table import Table

from posttrain import plots
from posttrain.connect import connect
from posttrain.datums import chat_prompt, plain_prompt
from posttrain.evals import Comparison, Score, evaluate, longest, side_by_side
from posttrain.lab.arms.rlvr import cold_start, rlvr_config
from posttrain.lab.estimate import before_spending
from posttrain.lab.plans import job_plan
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World, world_of
from posttrain.ledger import Ledger
from posttrain.methods import rlvr
from posttrain.renderers import PLAIN_STOP
from posttrain.runs import git_commit, git_dirty, write_json
from posttrain.scale import HONESTY, Scale


def post_train(
    scale: Scale,
    *,
    task: str | None = None,
    model: str | None = None,
    seed: int = 0,
    out: Path,
    yes: bool = False,
) -> dict[str, Score]:
    """Post-train the base model with SFT, then RLVR; print and save what it did to the model.

    Interrupted runs in `out` resume. Returns the scores by stage.

    Args:
        yes: at full scale, do not ask before spending.

    Raises:
        posttrain.connect.BackendError: no backend can be used.
        ValueError: `out` holds runs with another configuration, the task is unknown or has no
            right answers, the server lacks a model, or spending was not agreed to.
    """
    console = Console()
    world = world_of(scale, task, seed, model)
    if not world.graded:
        raise ValueError(f"the main job counts right answers; the task {task!r} has none")
    service = connect()
    before_spending(service, world, job_plan, yes=yes)
    console.print(
        f"{world.task} at {scale} scale: {len(world.demonstrations)} demonstrations, "
        f"{len(world.train)} problems to practise on, {len(world.test)} held out",
        highlight=False,
    )
    base = service.create_sampling_client(base_model=world.model).result()
    scores: dict[str, Score] = {}

    def measure(
        stage: str, sampler: tinker.SamplingClient, n: int | None = None, **how: Any
    ) -> None:
        with console.status(f"measuring: {stage}"):
            scores[stage] = evaluate(
                sampler, world.test[:n], world.k, seed,
                play=world.play, max_tokens=world.max_tokens, **how,
            )  # fmt: skip
        console.print(f"{stage}: {scores[stage]}", highlight=False)

    measure("base, in chat", base, n=100, prompt=chat_prompt)
    measure("base", base, prompt=plain_prompt, stop=PLAIN_STOP)
    start = cold_start(service, world, out / "sft", seed)
    measure("SFT", start.sampler)
    cfg = rlvr_config(world, seed)
    final = run_stage(
        service, world, out / "rlvr",
        lambda policy, at: rlvr.train(
            policy, world.train, cfg, play=world.play, reference=start.sampler, start=at
        ),
        cfg, start=start.checkpoint, show=("reward", "no_contrast", "entropy", "length"),
    )  # fmt: skip
    measure("RLVR", final.sampler)
    cost = start.cost(world.parameters) + final.cost(world.parameters)
    console.print(table_of(scores))
    console.print(f"95 % intervals over {len(world.test)} held-out problems. {HONESTY}\n")
    print_answers(console, world, base, {"SFT": start.sampler, "RLVR": final.sampler})
    save(out, world, seed, scores, cost, final)
    console.print(
        f"Plots: {out / 'before_after.png'}, {out / 'reward.png'}", highlight=False, soft_wrap=True
    )
    console.print(f"Runs: {start.folder}, {final.folder}", highlight=False, soft_wrap=True)
    return scores


def print_answers(
    console: Console,
    world: World,
    base: tinker.SamplingClient,
    trained: Mapping[str, tinker.SamplingClient],
) -> None:
    """Three held-out problems with long solutions, answered greedily by every stage."""
    problems = longest(world.test[:100], 3)
    show = partial(side_by_side, problems=problems, play=world.play, max_tokens=world.max_tokens)
    plain = show({"base": base}, prompt=plain_prompt, stop=PLAIN_STOP)
    for before, after in zip(plain, show(trained), strict=True):
        whole = Comparison(
            after.question,
            after.solution,
            {**before.answers, **after.answers},
            {**before.correct, **after.correct},
        )
        console.print(f"{whole}\n", highlight=False, markup=False)


def table_of(scores: Mapping[str, Score]) -> Table:
    """Stages in rows, one column per measure, each with its interval."""
    first = next(iter(scores.values()))
    table = Table(title="Before and after")
    for name in ("stage", "n", "pass@1", f"pass@{first.k}", "greedy", "well-formed", "tokens"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, s in scores.items():
        table.add_row(
            stage, str(s.n), str(s.pass_at_1), str(s.pass_at_k), str(s.greedy),
            f"{s.well_formed:.1%}", f"{s.mean_tokens:.0f}",
        )  # fmt: skip
    return table


def save(
    out: Path, world: World, seed: int, scores: Mapping[str, Score], cost: Ledger, final: Stage
) -> None:
    """Scores, cost and plots into the run folder."""
    record = {
        "commit": git_commit(),
        "dirty": git_dirty(),
        "scale": world.scale,
        "task": world.task,
        "model": world.model,
        "seed": seed,
        "stages": {name: score.to_json() for name, score in scores.items()},
        "ledger": cost.to_json(),
    }
    write_json(out / "results.json", record)
    comparable = {name: score for name, score in scores.items() if score.n == len(world.test)}
    plots.before_after(comparable, title="Before and after", path=out / "before_after.png")
    plots.curves(
        {"RLVR": [final.metrics]}, "reward", title="Reward while practising",
        ylabel="share of right answers", path=out / "reward.png",
    )  # fmt: skip

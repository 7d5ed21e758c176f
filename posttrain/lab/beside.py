"""Runs and results beside each other: how they were asked for, what came out, what it cost.

A run folder gives one column (`posttrain/runs.py` says what is in it), a results file one for each
of its arms or stages. So a method can be seen beside its control, or a run beside one of yesterday.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from posttrain.lab.stage import SAMPLES
from posttrain.ledger import Ledger
from posttrain.runs import Metrics, Run
from posttrain.stats import Estimate

END = 0.1  # share of the steps whose mean stands for the end of a run: single steps are noisy
RESULTS = "results.json"
LONGEST = 48  # letters of a setting; of longer ones the end is shown, by which paths differ
COSTS = ("optimizer_steps", "trained_tokens", "sampled_tokens", "scored_tokens", "seconds", "flops")


@dataclass(frozen=True)
class Column:
    """One run, or one arm of an experiment."""

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, str]  # at the end, or measured after it
    budget: Ledger | None = None  # None where the file does not say it of this column
    samples: Mapping[str, str] = field(default_factory=dict)  # question -> answer


def columns(name: str) -> list[Column]:
    """What is in a run folder, in a results file, or in a folder with one.

    Raises:
        ValueError: nothing of this kind is there, with the runs that are further inside; or a file
            is damaged.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return [of_run(name, path)]
    if path.is_file() and path.name.endswith(RESULTS):
        return of_results(name, path)
    if (path / RESULTS).is_file():
        return of_results(name, path / RESULTS)
    what = "is not there" if not path.exists() else "is neither a run folder nor a results file"
    inside = sorted({str(found.parent) for found in path.glob("**/metrics.jsonl")})
    inside += sorted(str(found) for found in path.glob(f"**/*{RESULTS}"))
    hint = f"; inside are {', '.join(inside[:8])}" if inside else ""
    raise ValueError(f"{name} {what}{hint}")


def of_run(name: str, folder: Path) -> Column:
    """A run, as far as its latest checkpoint."""
    config = _read(folder / "config.json")
    run = Run.open(folder, config)
    lines = run.metrics()
    state = str(run.step) if run.finished else f"{run.step}, unfinished"
    kept = _read(folder / SAMPLES) if (folder / SAMPLES).is_file() else []
    return Column(
        name,
        config,
        {"step": state, **{key: f"{value:.4g}" for key, value in at_end(lines).items()}},
        Ledger.of(lines),
        {sample["question"]: sample["answer"] for sample in kept},
    )


def at_end(lines: Sequence[Metrics]) -> Metrics:
    """The mean of each metric over the last tenth of the steps that have it, at least one."""
    found: Metrics = {}
    for key in dict.fromkeys(key for line in lines for key in line):
        values = [line[key] for line in lines if line.get(key) is not None]
        last = values[-max(1, round(END * len(values))) :] if values else []
        if last and key not in ("step", "seconds"):
            found[key] = sum(last) / len(last)
    return found


def of_results(name: str, path: Path) -> list[Column]:
    """The arms of an experiment, means over its seeds; or the stages of the main job."""
    results = _read(path)
    try:
        shared = {key: results[key] for key in ("scale", "model", "commit")}
        if "stages" in results:
            config = {**shared, "task": results["task"], "seed": results["seed"]}
            return [
                Column(f"{name}: {stage}", config, _told(score))
                for stage, score in results["stages"].items()
            ]
        config = {**shared, **results["config"], "seeds": results["seeds"]}
        return [
            Column(f"{name}: {arm}", config, _of_arm(found), _spent(found["runs"]))
            for arm, found in results["arms"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a results file of this repository: {error!r}") from error


def _of_arm(arm: Mapping[str, Any]) -> dict[str, str]:
    """Means with their intervals; of a single seed what it measured."""
    return _told(arm["summary"] or arm["runs"][0]["metrics"])


def _told(values: Mapping[str, Any]) -> dict[str, str]:
    """Numbers and estimates as text; lists, one value for each item, are left out."""
    told = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and "value" in value and value["value"] is not None:
            told[key] = str(Estimate.from_json(value))
        elif isinstance(value, int | float):
            told[key] = f"{value:.4g}"
    return told


def _spent(runs: Iterable[Mapping[str, Any]]) -> Ledger:
    return sum((Ledger.from_json(run["ledger"]) for run in runs), Ledger())


def beside(shown: Sequence[Column]) -> RenderableType:
    """Tables of settings that differ, metrics, budget and samples; a part without rows is left out.

    Raises:
        ValueError: there is nothing to show.
    """
    if not shown:
        raise ValueError("nothing to compare: name run folders or results files")
    flat = [_flat(column.config) for column in shown]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    differing = [key for key in keys if len({config.get(key, "") for config in flat}) > 1]
    same = [f"{key} {flat[0][key]}" for key in keys if key not in differing]
    parts: list[RenderableType] = (
        [Text(f"The same: {', '.join(same)}", style="dim")] if same else []
    )
    names = [column.name for column in shown]
    parts += _table("settings that differ", names, differing, lambda i, key: flat[i].get(key, ""))
    measured = list(dict.fromkeys(key for column in shown for key in column.metrics))
    parts += _table("at the end", names, measured, lambda i, key: shown[i].metrics.get(key, ""))
    costs = COSTS if any(column.budget for column in shown) else ()
    parts += _table("budget, all seeds", names, costs, lambda i, key: _cost(shown[i].budget, key))
    asked = list(dict.fromkeys(question for column in shown for question in column.samples))
    parts += _table("greedy answers", names, asked, lambda i, key: shown[i].samples.get(key, ""))
    return Group(*parts)


def _table(
    title: str, names: Sequence[str], keys: Sequence[str], cell: Callable[[int, str], str]
) -> list[RenderableType]:
    if not keys:
        return []
    table = Table(title)
    for name in names:
        table.add_column(Text(name))  # Text, because a path or a story may look like markup
    for key in keys:
        table.add_row(*(Text(x) for x in (key, *(cell(i, key) for i in range(len(names))))))
    return [table]


def _cost(ledger: Ledger | None, key: str) -> str:
    if ledger is None:
        return ""
    value = getattr(ledger, key)
    return f"{value:,.0f}" if key != "flops" else f"{value:.2e}" if value else "unknown"


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested settings by their path, as `rlvr.steps`; values as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{before}{key}"] = text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"
    return flat


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error

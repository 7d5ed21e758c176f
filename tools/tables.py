"""Build the tables of README.md and PLAN.md from the files that prove them.

    python tools/tables.py             rewrite the marked blocks
    python tools/tables.py --check     refuse stale ones

A block stands between `<!-- table:status -->` or `<!-- table:results -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.scale import HONESTY

ROOT = Path(__file__).resolve().parents[1]

# Every method of the plan: its name and its notebook. The results file stands beside it.
METHODS = {
    "SFT": "methods/sft/sft_train.ipynb",
    "RLVR": "methods/rlvr/rlvr_train.ipynb",
    "DPO": "methods/dpo/dpo_train.ipynb",
    "Rubric RL": "methods/rubric_rl/rubric_rl_train.ipynb",
    "RLHF": "methods/rlhf/rlhf_train.ipynb",
    "On-policy distillation": "methods/distillation/on_policy.ipynb",
    "Off-policy distillation": "methods/distillation/off_policy.ipynb",
    "SDFT": "methods/sdft/sdft_train.ipynb",
    "Multi-agent RL": "methods/marl/marl_train.ipynb",
}
BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
# Which blocks each document must have.
DOCUMENTS = {"README.md": ("status", "results"), "PLAN.md": ("status",)}


class TableError(Exception):
    """A document or results file from which no table can be built; says where and what to do."""


def results_file(root: Path, notebook: Path) -> Path:
    """`results.json` beside the only notebook of a folder, else `NAME.results.json`."""
    planned = {root / path for path in METHODS.values()}
    here = {path for path in planned if path.parent == notebook.parent}
    alone = len(here | {*notebook.parent.glob("*.ipynb")} | {notebook}) == 1
    return notebook.with_name("results.json") if alone else notebook.with_suffix(".results.json")


def status_table(root: Path) -> str:
    """One row per planned method and per stack or invention there is: done, or planned.

    Done means that the notebook and its results file both exist; the other columns are read from
    them, and empty where they do not say.
    """
    rows = [_status_row(root, "method", name, root / path) for name, path in METHODS.items()]
    for kind, folder in (("stack", "stacks"), ("invention", "inventions")):
        for home in sorted(path for path in (root / folder).glob("*") if path.is_dir()):
            scripts = [path for path in home.glob("*.py") if "\n# %%" in f"\n{path.read_text()}"]
            notebooks = {path.with_suffix(".ipynb") for path in [*scripts, *home.glob("*.ipynb")]}
            names = sorted(notebooks) or [home / f"{home.name}.ipynb"]
            rows += [_status_row(root, kind, path.stem.replace("_", " "), path) for path in names]
    header = ["Kind", "Name", "Notebook", "Status", "Task", "Start -> method [95 % interval]",
              "Control, equal budget", "Minutes"]  # fmt: skip
    return _table(header, rows)


def results_table(root: Path) -> str:
    """One row per claim of every results file, then the sentence on what the rows can mean."""
    rows = []
    for folder in ("methods", "stacks", "inventions"):
        for path in sorted((root / folder).glob("*/*results.json")):
            rows += _claim_rows(path, root)
    header = ["Experiment", "Claim", "Measure", "Baseline", "Difference [95 % interval]",
              "Seeds", "Scale", "Commit"]  # fmt: skip
    body = _table(header, rows) if rows else "No results yet.\n"
    return f"{body}\n{HONESTY}\n"


TABLES: dict[str, Callable[[Path], str]] = {"status": status_table, "results": results_table}


def rebuilt(text: str, root: Path, name: str) -> str:
    """`text` of the document `name` with every block filled anew.

    Raises TableError for an unknown or unclosed block, and when a block of `name` is missing.
    """
    found = [match.group(2) for match in BLOCK.finditer(text)]
    opened = re.findall(r"<!-- table:(\w+) -->", text)
    if opened != found:
        raise TableError(f"{name}: a table block is not closed by its own <!-- /table --> line")
    for table in DOCUMENTS.get(name, ()):
        if table not in found:
            raise TableError(
                f"{name}: the block <!-- table:{table} --> ... <!-- /table --> is missing; add it "
                "where the table shall stand"
            )
    unknown = [table for table in found if table not in TABLES]
    if unknown:
        raise TableError(f"{name}: unknown table {unknown[0]!r}; known: {', '.join(TABLES)}")
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]](root)}{m[3]}", text)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 when all is well, 1 with one line per problem on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="refuse tables that are stale")
    check = parser.parse_args(arguments).check
    problems = []
    for name in DOCUMENTS:
        path = root / name
        try:
            if not path.exists():
                raise TableError(f"{name}: is missing")
            before = path.read_text()
            after = rebuilt(before, root, name)
        except TableError as error:
            problems.append(str(error))
            continue
        if before != after and check:
            problems.append(f"{name}: its tables are stale; run tools/tables.py")
        elif before != after:
            path.write_text(after)
            print(f"{name}: tables rebuilt")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _status_row(root: Path, kind: str, name: str, notebook: Path) -> list[str]:
    path = notebook.relative_to(root).as_posix()
    there, results = notebook.exists(), results_file(root, notebook)
    done = there and results.exists()
    return [
        kind,
        name,
        f"[{path}]({path})" if there else f"`{path}`",
        "done" if done else "planned",
        *(_headline(results, root) if done else ["", "", ""]),
        _minutes(notebook) if there else "",
    ]


def _headline(path: Path, root: Path) -> list[str]:
    """Task, start -> method, and control of a results file."""
    try:
        results = json.loads(path.read_text())
        task, line = results["config"].get("task", ""), results.get("headline")
        if not line:
            return [task, "", ""]
        arms, metric = results["arms"], line["metric"]
        start, method, control = (
            arms[line[role]]["summary"].get(metric) for role in ("start", "method", "control")
        )
        if not start or not method or not control:  # of a single seed
            return [task, "", ""]
        reached = f"{method['value']:.3f} [{method['low']:.3f}, {method['high']:.3f}]"
        return [task, f"{metric}: {start['value']:.3f} -> {reached}",
                f"{line['control']}: {control['value']:.3f}"]  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        name = path.relative_to(root).as_posix()
        raise TableError(
            f"{name}: not a results file ({error!r}); write it with posttrain.runs.write_results"
        ) from error


def _minutes(notebook: Path) -> str:
    """How long the notebook took when it was executed last, with the number of cores."""
    run = json.loads(notebook.read_text()).get("metadata", {}).get("posttrain", {}).get("run", {})
    return f"{run['seconds'] / 60:.1f}, {run['cores']} cores" if "seconds" in run else ""


def _claim_rows(path: Path, root: Path) -> list[list[str]]:
    name = path.relative_to(root).as_posix()
    try:
        results = json.loads(path.read_text())
        return [_claim_row(results, claim, name) for claim in results["claims"]]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{name}: not a results file ({error!r}); write it with posttrain.runs.write_results"
        ) from error


def _claim_row(results: Mapping[str, Any], claim: Mapping[str, Any], name: str) -> list[str]:
    low, high = claim["ci95"]
    difference = f"{claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    if low <= 0 <= high:
        difference += ", no clear effect"
    summary = results["arms"][claim["baseline"]]["summary"].get(claim["metric"])
    value = f" ({summary['value']:.3f})" if summary and summary["value"] is not None else ""
    commit = results["commit"][:7] + (" + changes" if results["dirty"] else "")
    link = f"[{results['experiment']}]({os.path.dirname(name)}/)"
    return [link, claim["claim"], f"{claim['metric']} of {claim['arm']}",
            f"{claim['baseline']}{value}", difference, str(claim["n_seeds"]), results["scale"],
            commit]  # fmt: skip


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())

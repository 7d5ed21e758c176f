"""Build the tables of README.md, PLAN.md and the lessons' pages from the files that prove them.

    python tools/tables.py             rewrite the marked blocks
    python tools/tables.py --check     refuse stale ones

A block stands between `<!-- table:NAME -->` and `<!-- /table -->`: `status` and `results` are about
everything; on a lesson's page (methods/*/README.md) `results` and `arms` are about its own folder.
Elsewhere `results` has of an experiment with a headline only the claims about it.
"""

from __future__ import annotations

import argparse
import json
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
    """`results.json` beside the only notebook of a folder, or where its headlines name the
    notebook, as those of lessons that share an experiment; else `NAME.results.json`."""
    planned = {root / path for path in METHODS.values()}
    here = {path for path in planned if path.parent == notebook.parent}
    alone = len(here | {*notebook.parent.glob("*.ipynb")} | {notebook}) == 1
    shared = notebook.with_name("results.json")
    if alone or (shared.exists() and notebook.stem in (_read(shared, root).get("headline") or {})):
        return shared
    return notebook.with_suffix(".results.json")


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


def results_table(root: Path, home: Path | None = None) -> str:
    """One row per claim of the results files in the folder `home`, or else per claim about the
    headline of every results file; then the sentence on what the rows can mean."""
    rows = [row for path in _results_files(root, home) for row in _claim_rows(path, root, home)]
    header = ["Experiment", "Claim", "Measure", "Baseline", "Difference [95 % interval]",
              "Seeds", "Scale", "Commit"]  # fmt: skip
    body = _table(header, rows) if rows else "No results yet.\n"
    return f"{body}\n{HONESTY}\n"


def arms_table(root: Path, home: Path | None = None) -> str:
    """One row per arm of the results files in the folder `home`, one column per metric: the mean
    over seeds with its interval; then the sentence on what the rows can mean."""
    tables = [_arms(path, root) for path in _results_files(root, home)] or ["No results yet.\n"]
    return "\n".join([*tables, f"{HONESTY}\n"])


TABLES: dict[str, Callable[[Path, Path | None], str]] = {
    "status": lambda root, home: status_table(root),
    "results": results_table,
    "arms": arms_table,
}


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
    folder = (root / name).parent
    home = None if folder == root else folder
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]](root, home)}{m[3]}", text)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 when all is well, 1 with one line per problem on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="refuse tables that are stale")
    check = parser.parse_args(arguments).check
    problems = []
    pages = sorted(p.relative_to(root).as_posix() for p in (root / "methods").glob("*/README.md"))
    for name in [*DOCUMENTS, *pages]:
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
        *(_headline(results, root, notebook.stem) if done else ["", "", ""]),
        _minutes(notebook) if done else "",
    ]


def _read(path: Path, root: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise _no_results(path, root, error) from error


def _headline(path: Path, root: Path, notebook: str) -> list[str]:
    """Task, start -> method, and control of the results file of a notebook."""
    try:
        results = _read(path, root)
        task, line = results["config"].get("task", ""), results.get("headline")
        line = line.get(notebook, line) if line else line
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
        raise _no_results(path, root, error) from error


def _minutes(notebook: Path) -> str:
    """How long the notebook took when it was executed last, with the number of cores."""
    run = json.loads(notebook.read_text()).get("metadata", {}).get("posttrain", {}).get("run", {})
    return f"{run['seconds'] / 60:.1f}, {run['cores']} cores" if "seconds" in run else ""


def _results_files(root: Path, home: Path | None) -> list[Path]:
    if home is not None:
        return sorted(home.glob("*results.json"))
    folders = [root / folder for folder in ("methods", "stacks", "inventions")]
    return [path for folder in folders for path in sorted(folder.glob("*/*results.json"))]


def _arms(path: Path, root: Path) -> str:
    try:
        results = json.loads(path.read_text())
        arms = results["arms"]
        names = list(dict.fromkeys(metric for arm in arms.values() for metric in arm["summary"]))
        rows = [
            [name, *(_mean(arm["summary"].get(n)) for n in names)] for name, arm in arms.items()
        ]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_results(path, root, error) from error
    return _table([f"Arm{_on(results, path.name)}", *names], rows)


def _on(results: Mapping[str, Any], name: str) -> str:
    """The task, where the file holds the results of an experiment on another than its own."""
    task = results["config"].get("task")
    return f" on {task}" if name == f"{task}.results.json" else ""


def _mean(summary: Mapping[str, Any] | None) -> str:
    if not summary or summary["value"] is None:
        return ""
    return f"{summary['value']:.3f} [{summary['low']:.3f}, {summary['high']:.3f}]"


def _no_results(path: Path, root: Path, error: Exception) -> TableError:
    name = path.relative_to(root).as_posix()
    return TableError(
        f"{name}: not a results file ({error!r}); write it with posttrain.runs.write_results"
    )


def _claim_rows(path: Path, root: Path, home: Path | None) -> list[list[str]]:
    """On the page of its own folder an experiment links to its file, elsewhere to the folder."""
    link = path.name if home else f"{path.parent.relative_to(root).as_posix()}/"
    try:
        results = json.loads(path.read_text())
        named = f"[{results['experiment']}]({link}){_on(results, path.name)}"
        return [
            [named, *_claim_row(results, claim)]
            for claim in results["claims"]
            if home or _about_headline(claim, results.get("headline"))
        ]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise _no_results(path, root, error) from error


def _about_headline(claim: Mapping[str, Any], headline: Mapping[str, Any] | None) -> bool:
    """Whether it compares a headline's method with the start or the control, by its metric, so
    that no page shows the claims that came out well alone."""
    if not headline:
        return True
    lines = [headline] if "metric" in headline else [*headline.values()]
    return any(
        claim["metric"] == line["metric"]
        and claim["arm"] == line["method"]
        and claim["baseline"] in (line["start"], line["control"])
        for line in lines
    )


def _claim_row(results: Mapping[str, Any], claim: Mapping[str, Any]) -> list[str]:
    low, high = claim["ci95"]
    difference = f"{claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    if low <= 0 <= high:
        difference += ", no clear effect"
    summary = results["arms"][claim["baseline"]]["summary"].get(claim["metric"])
    value = f" ({summary['value']:.3f})" if summary and summary["value"] is not None else ""
    commit = results["commit"][:7] + (" + changes" if results["dirty"] else "")
    return [claim["claim"], f"{claim['metric']} of {claim['arm']}", f"{claim['baseline']}{value}",
            difference, str(claim["n_seeds"]), results["scale"], commit]  # fmt: skip


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())

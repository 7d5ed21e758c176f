"""Build notebooks from scripts: the import in the script is the source in the notebook.

    python tools/weave.py [SCRIPT ...]      build; outputs stay while the code is the same
    python tools/weave.py --run             build and execute at SCALE, stamp what code ran
    python tools/weave.py --run --out DIR   execute copies in DIR, leave the notebooks alone
    python tools/weave.py --smoke           the same at smoke scale, in a temporary folder
    python tools/weave.py --check           refuse edited, stale and outdated notebooks

A script is Python in jupytext's percent format: methods/sft/sft_train.py gives
methods/sft/sft_train.ipynb. A cell tagged "inline" holds only `from posttrain.x import a, b`;
in the notebook it becomes the source of a and of b, and the imports that they need.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import time
import tokenize
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, this file's folder is on the path and ROOT is not
    sys.path.insert(0, str(ROOT))

from posttrain.scale import Scale, scale_from  # noqa: E402
from tools.inlining import Names, WeaveError, inline  # noqa: E402

FOLDERS = ("methods", "stacks", "inventions")
TIMEOUT = 4 * 3600  # seconds for one cell


def discover(root: Path) -> list[Path]:
    """Every percent script of a lesson or experiment, sorted."""
    scripts = sorted(p for folder in FOLDERS for p in (root / folder).glob("*/*.py"))
    return [p for p in scripts if any(x.startswith("# %%") for x in p.read_text().splitlines())]


def build(script: Path, root: Path) -> NotebookNode:
    """The notebook of `script`, without outputs; the same bytes for the same sources."""
    where = script.relative_to(root).as_posix()
    names, parts = Names(), []
    for number, cell in enumerate(jupytext.reads(script.read_text(), fmt="py:percent").cells, 1):
        tags = cell.metadata.get("tags", [])
        place = f"{where}, cell {number}"
        if cell.cell_type != "code":
            parts.append((cell.cell_type, cell.source, tags))
            continue
        try:
            if "inline" in tags:
                inlined = inline(cell.source, root, names)
                parts += [("code", source, []) for source in inlined]
            else:
                names.add_cell(_without_magics(cell.source))
                parts.append(("code", cell.source, tags))
        except SyntaxError as error:
            raise WeaveError(f"{place}: does not parse: {error}") from None
        except WeaveError as error:
            raise WeaveError(f"{place}: {error}") from None
    note = f"*Built from [{script.name}]({script.name}) by `tools/weave.py`: edit the script.*"
    return _notebook([*parts, ("markdown", note, [])], where)


def fingerprint(notebook: NotebookNode) -> str:
    """16 hex digits of the notebook's code cells; comments and blank lines do not count."""
    return _digest([_code_only(cell.source) for cell in _code_cells(notebook)])


def write(script: Path, root: Path) -> str:
    """Build the notebook beside `script`, keeping outputs of the same code; says what happened."""
    notebook, path = build(script, root), script.with_suffix(".ipynb")
    name = path.relative_to(root).as_posix()
    before = path.read_text() if path.exists() else ""
    old = nbformat.reads(before, as_version=4) if before else None
    dropped = ""
    if old is not None and (stamp := _stamp(old)):
        if fingerprint(old) == fingerprint(notebook) == stamp["code"]:
            _copy_outputs(old, notebook, stamp)
        else:
            dropped = "; its code changed, so its outputs were dropped: run weave --run"
    text = nbformat.writes(notebook) + "\n"
    if text == before:
        return f"{name}: up to date"
    path.write_text(text)
    return f"{name}: built{dropped}"


def execute(
    script: Path, root: Path, scale: Scale, out: Path | None, timeout: int = TIMEOUT
) -> str:
    """Execute the notebook of `script`; a line on how it went.

    The kernel runs in the notebook's folder, or in the same folder under `out`, so files written
    with relative paths stay with it. It sees SCALE and POSTTRAIN_CODE, the fingerprint. A failed
    notebook is written only under `out`. Raises WeaveError with the failing cell's traceback.
    """
    notebook, code = build(script, root), fingerprint(build(script, root))
    path = script.with_suffix(".ipynb")
    name = path.relative_to(root).as_posix()
    target = out / name if out else path
    target.parent.mkdir(parents=True, exist_ok=True)
    ran, began = nbformat.reads(nbformat.writes(notebook), as_version=4), time.monotonic()
    client = NotebookClient(
        ran,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(target.parent)}},
        record_timing=False,
        on_cell_start=_reporter(name, len(ran.cells)),
    )
    search = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    settings = {"SCALE": scale.value, "POSTTRAIN_CODE": code, "PYTHONPATH": search}
    settings["PYTHONWARNINGS"] = "ignore:IProgress not found"  # nobody watches these bars
    try:
        client.execute(env={**os.environ, **settings})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        if out:
            nbformat.write(ran, target)
        raise WeaveError(f"{name}: failed at {scale} scale\n{error}") from None
    seconds = round(time.monotonic() - began)
    stamp = {"code": code, "scale": scale.value, "seconds": seconds, "cores": os.cpu_count()}
    _copy_outputs(ran, notebook, stamp)
    target.write_text(nbformat.writes(notebook) + "\n")
    return f"{name}: executed at {scale} scale in {seconds} s"


def check(script: Path, root: Path) -> list[str]:
    """What is wrong with the committed notebook of `script`, one line each; empty when nothing."""
    path = script.with_suffix(".ipynb")
    name = path.relative_to(root).as_posix()
    if not path.exists():
        return [f"{name}: is missing; run tools/weave.py"]
    try:
        notebook, expected = nbformat.read(path, as_version=4), build(script, root)
    except (nbformat.ValidationError, ValueError) as error:  # merge markers, say
        reason = str(error).splitlines()[0][:80]
        return [f"{name}: is not a notebook ({reason}); delete it and run tools/weave.py --run"]
    stored = notebook.metadata.get("posttrain", {})
    if _text(notebook) != _text(expected):
        if _text(notebook) != stored.get("text"):
            return [f"{name}: was edited by hand; move the edit to {script.name}, then weave"]
        return [f"{name}: is stale, its script or inlined source changed; run tools/weave.py"]
    stamp = _stamp(notebook)
    filled = [cell for cell in _code_cells(notebook) if _code_only(cell.source)]
    if not stamp or any(cell.execution_count is None for cell in filled):
        return [f"{name}: was not executed; run tools/weave.py --run"]
    problems = []
    if any(o.output_type == "error" for cell in filled for o in cell.outputs):
        problems.append(f"{name}: holds an error output; mend the cause and run weave --run")
    if stamp["code"] != fingerprint(notebook):
        problems.append(f"{name}: its outputs come from other code; run tools/weave.py --run")
    if stamp["scale"] == Scale.SMOKE:
        problems.append(
            f"{name}: was executed at smoke scale, which claims nothing; run it at laptop"
        )
    return problems


def check_folders(root: Path, scripts: Iterable[Path]) -> list[str]:
    """Notebooks without a script, and results files that other code produced."""
    from posttrain.lab.arms import EXPERIMENTS  # only here: it loads torch

    problems, codes = [], {}
    for script in scripts:
        try:
            codes[script] = fingerprint(build(script, root))
        except WeaveError:  # `check` reports it
            codes[script] = "unknown"
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*/*.ipynb")):
            if path.with_suffix(".py") not in codes:
                problems.append(f"{path.relative_to(root)}: there is no script it is built from")
        for path in sorted((root / folder).glob("*/*results.json")):
            code = json.loads(path.read_text()).get("code", "unknown")
            here = {codes[script] for script in codes if script.parent == path.parent}
            here |= {e.code for e in EXPERIMENTS.values() if root / e.name == path.parent}
            if code != "unknown" and here and not here & {code, "unknown"}:
                problems.append(
                    f"{path.relative_to(root)}: comes from other code; make the results again, "
                    "with weave --run or posttrain run --record"
                )
    return problems


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 when all is well, 1 with one line per problem on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scripts", nargs="*", type=Path, help="default: all of them")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="refuse what is not up to date")
    mode.add_argument("--run", action="store_true", help="execute at SCALE")
    mode.add_argument("--smoke", action="store_true", help="execute copies at smoke scale")
    parser.add_argument("--out", type=Path, help="folder for executed copies")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds for one cell")
    asked = parser.parse_args(arguments)
    scripts = [script.resolve() for script in asked.scripts] or discover(root)
    if not scripts:
        print(f"no scripts in {', '.join(FOLDERS)}")
        return 0 if asked.check or asked.smoke else 1
    problems = [] if asked.scripts or not asked.check else check_folders(root, scripts)
    scale = Scale.SMOKE if asked.smoke else scale_from()
    out = asked.out or (Path(tempfile.mkdtemp(prefix="weave-")) if asked.smoke else None)

    def handle(script: Path) -> list[str]:
        """Do what was asked; problems of `--check`."""
        if asked.check:
            return check(script, root)
        if asked.run or asked.smoke:
            told = execute(script, root, scale, out and out.resolve(), asked.timeout)
        else:
            told = write(script, root)
        print(told, flush=True)
        return []

    # Copies at smoke scale claim nothing, not even how long they took: two at a time, each with one
    # thread, which is sooner than both with two.
    if asked.smoke:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ThreadPoolExecutor(max_workers=2 if asked.smoke else 1) as pool:
        for handled in [pool.submit(handle, script) for script in scripts]:
            try:
                problems += handled.result()
            except WeaveError as error:
                problems.append(str(error))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _notebook(parts: list[tuple[str, str, list[str]]], source: str) -> NotebookNode:
    seen: Counter[str] = Counter()
    cells = []
    for kind, text, tags in parts:
        digest = _digest([kind, text])[:8]
        seen[digest] += 1
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        cell = new(text, id=f"{digest}-{seen[digest]}")
        if tags:
            cell.metadata["tags"] = tags
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["posttrain"] = {"source": source, "text": _text(notebook)}
    return notebook


def _copy_outputs(old: NotebookNode, new: NotebookNode, stamp: dict[str, Any]) -> None:
    for theirs, ours in zip(_code_cells(old), _code_cells(new), strict=True):
        ours.outputs, ours.execution_count = theirs.outputs, theirs.execution_count
    new.metadata["posttrain"]["run"] = stamp


def _stamp(notebook: NotebookNode) -> dict[str, Any] | None:
    return notebook.metadata.get("posttrain", {}).get("run")


def _text(notebook: NotebookNode) -> str:
    return _digest([part for cell in notebook.cells for part in (cell.cell_type, cell.source)])


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _without_magics(source: str) -> str:
    lines = source.splitlines()
    return "\n".join("" if line.startswith(("%", "!")) else line for line in lines)


def _code_only(source: str) -> str:
    """`source` without comments, blank lines and trailing blanks."""
    lines = source.splitlines()
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):  # a cell with magics counts as it stands
        return source
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _reporter(name: str, total: int) -> Any:
    def on_cell_start(cell: NotebookNode, cell_index: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: cell {cell_index + 1}/{total} ", end="", file=sys.stderr, flush=True)

    return on_cell_start


if __name__ == "__main__":
    sys.exit(main())

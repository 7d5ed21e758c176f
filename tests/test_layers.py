"""Imports flow one way: lab -> inventions -> stacks -> methods -> tasks -> shared -> problem.

`connect` starts the engine and is for whoever runs an experiment: lab, command line, lessons.
No library code knows which Tinker it runs on, so none imports `connect` or `engine`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ["lab", "inventions", "stacks", "methods", "tasks", "shared", "problem"]  # high to low
MAY_IMPORT = {layer: LIBRARY[i:] for i, layer in enumerate(LIBRARY)} | {
    "problem": [],  # the protocol that everything shares
    "lab": [*LIBRARY, "connect"],  # runs experiments, so it knows backends
    "engine": ["engine"],
    "connect": ["engine", "engine_client"],
    "engine_client": [],
    "root": ["connect"],  # posttrain/__init__.py offers posttrain.connect()
    "cli": [*LIBRARY, "cli", "connect", "engine"],
    "__main__": ["cli"],
    "lesson": [*LIBRARY, "connect"],
}
LESSONS = ("inventions", "stacks", "methods")
NEVER = (*LESSONS, "tools", "tests", "benchmarks")  # top-level folders that nothing imports
GOLD = "posttrain.tasks.gold"  # the hidden quality: measured with, never trained on
MAY_SEE_GOLD = ("posttrain.tasks.human", "posttrain.lab")  # and what is below; lessons too


def layer_of(module: str) -> str:
    """The layer of a module of posttrain; a file at its top is shared unless listed above."""
    if module == "posttrain.tasks.problem":
        return "problem"
    if module == "posttrain":
        return "root"
    first = [*module.split("."), ""][1]
    return first if first in MAY_IMPORT and first not in ("problem", "shared") else "shared"


def imported(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, inside functions too; relative ones resolved."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            # `from posttrain import engine` imports a module, `from posttrain.stats import iqm`
            # a name; with the name attached both lie in the right layer.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(root: Path) -> list[str]:
    found = []
    files = [(path, "") for path in sorted((root / "posttrain").rglob("*.py"))]
    files += [(p, "lesson") for folder in LESSONS for p in sorted((root / folder).rglob("*.py"))]
    for path, given in files:
        name = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        module = name.removesuffix(".__init__")
        layer = given or layer_of(module)
        for line, target in imported(path, module):
            place = f"{path.relative_to(root)}:{line}"
            if target.split(".")[0] in NEVER:
                found.append(f"{place} imports {target}; nothing imports lessons, tools or tests")
            elif target.split(".")[0] == "posttrain":
                aim = "problem" if target.startswith("posttrain.tasks.problem.") else ""
                aim = aim or layer_of(target)
                if target != "posttrain" and aim not in MAY_IMPORT[layer]:
                    found.append(f"{place} imports {target}; {layer} may not import {aim}")
                # By any way: `from posttrain.tasks.human import gold` is the same secret.
                if "gold" in target.split(".") and not sees_gold(module, layer):
                    found.append(f"{place} imports {target}; only evaluation may see gold")
    return found


def sees_gold(module: str, layer: str) -> bool:
    seeing = any(f"{module}.".startswith(f"{name}.") for name in MAY_SEE_GOLD)
    return seeing or layer == "lesson" or module == GOLD


def test_imports_flow_one_way() -> None:
    assert violations(ROOT) == []


def test_the_whole_library_was_looked_at() -> None:
    layers = {
        layer_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
        for path in (ROOT / "posttrain").rglob("*.py")
    }
    assert {"engine", "connect", "shared", "problem", "tasks", "methods"} <= layers


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("methods/sft.py", "from posttrain.stacks.x import y", "methods may not import stacks"),
        ("tasks/math.py", "import posttrain.methods.sft", "tasks may not import methods"),
        ("tasks/math.py", "from posttrain import methods", "tasks may not import methods"),
        ("tasks/math.py", "from ..methods import sft", "tasks may not import methods"),
        ("evals.py", "from .tasks import math", "shared may not import tasks"),
        ("evals.py", "def f():\n    import posttrain.tasks.math", "shared may not import tasks"),
        ("tasks/problem.py", "from posttrain.stats import iqm", "problem may not import shared"),
        ("engine/model.py", "from posttrain.stats import iqm", "engine may not import shared"),
        ("engine/__init__.py", "from ..stats import iqm", "engine may not import shared"),
        ("connect.py", "from posttrain.runs import Run", "connect may not import shared"),
        ("stacks/a.py", "from posttrain.connect import connect", "stacks may not import connect"),
        ("methods/sft.py", "from posttrain.engine import x", "methods may not import engine"),
        ("stacks/a.py", "from methods.sft import sft_train", "nothing imports lessons"),
        ("../methods/sft/a.py", "from tools.weave import build", "nothing imports lessons, tools"),
        ("../stacks/x/a.py", "import posttrain.engine.model", "lesson may not import engine"),
        ("evals.py", "import benchmarks.tasks", "nothing imports lessons, tools or tests"),
        ("methods/dpo.py", "from posttrain.tasks.gold import gold", "only evaluation may see gold"),
        ("methods/dpo.py", "from posttrain.tasks import gold", "only evaluation may see gold"),
        ("methods/dpo.py", "from ..tasks.human import gold", "only evaluation may see gold"),
        ("tasks/stories.py", "from .gold import quality", "only evaluation may see gold"),
        ("tasks/rubrics.py", "def f():\n    from . import gold", "only evaluation may see gold"),
        ("stacks/a.py", "import posttrain.tasks.gold", "only evaluation may see gold"),
        ("cli.py", "import posttrain.tasks.gold as x", "only evaluation may see gold"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = (tmp_path / "posttrain" / file).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"import os\n{line}\n")
    (found,) = violations(tmp_path)
    assert message in found
    assert f"{path.name}:{line.count(chr(10)) + 2} imports" in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("inventions/a.py", "from posttrain.stacks.b import c"),
        ("stacks/a.py", "from posttrain.methods import sft, dpo"),
        ("methods/sft.py", "from posttrain.tasks.problem import Problem"),
        ("tasks/math.py", "from posttrain.tasks.problem import Grade"),
        ("evals.py", "from posttrain.tasks.problem import Problem"),
        ("evals.py", "from .stats import iqm"),
        ("connect.py", "from posttrain.engine.server import serve"),
        ("cli.py", "from posttrain.connect import connect"),
        ("../methods/sft/a.py", "from posttrain.connect import connect"),
        ("methods/sft.py", "import tinker"),
        ("tasks/human.py", "from posttrain.tasks.gold import gold"),
        ("lab/worlds.py", "from posttrain.tasks.gold import gold"),
        ("../methods/dpo/a.py", "from posttrain.tasks.gold import gold"),
        ("methods/dpo.py", "from posttrain.tasks.human import prefers"),
    ],
)
def test_the_allowed_direction_is_allowed(tmp_path: Path, file: str, line: str) -> None:
    path = (tmp_path / "posttrain" / file).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    assert violations(tmp_path) == []

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from posttrain.scale import Scale
from tools.inlining import Module, WeaveError
from tools.weave import build, check, check_folders, execute, fingerprint, main, write

MODULE = '''
"""A method."""

from __future__ import annotations

import functools
import math
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .shared import scale_up
from . import shared as sh

if TYPE_CHECKING:
    from decimal import Decimal

# Small on purpose.
# Two lines of reasons.
EPS = 1e-3  # a unit


@dataclass(frozen=True)
class Config:
    """Sizes."""

    steps: int = 3
    lr: float = 0.5

    def doubled(self) -> Config:
        return Config(self.steps * 2, self.lr)


def _private(x: float) -> float:
    return math.sqrt(x) + EPS


# Why it is cached.
@functools.lru_cache
def loss(x: float, unused: Decimal | None = None) -> float:
    """The loss."""
    math = 1  # a local name that hides the module
    return _private(x) + math - 1


def train(cfg: Config) -> Iterator[float]:
    for step in range(cfg.steps):
        yield scale_up(loss(step), sh.FACTOR) + len(os.path.sep)
'''

SHARED = """
FACTOR = 2.0


def scale_up(x: float, by: float) -> float:
    return x * by
"""

SCRIPT = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A lesson
#
# With *prose*.

# %%
import os

# %% tags=["inline"]
from pkg.method import loss

# %% tags=["inline"]
from pkg.method import Config, train

# %%
values = list(train(Config().doubled()))  # six of them
print(len(values), os.environ["SCALE"], os.environ["POSTTRAIN_CODE"])

# %%
open("written.txt", "w").write("here")
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name, text in {
        "pkg/__init__.py": "",
        "pkg/method.py": MODULE,
        "pkg/shared.py": SHARED,
        "methods/sft/sft_train.py": SCRIPT,
        "methods/sft/helper.py": "x = 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def script(house: Path) -> Path:
    return house / "methods/sft/sft_train.py"


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_inlined_cells_are_the_source_with_what_it_needs(house: Path, script: Path) -> None:
    cells = [cell.source for cell in build(script, house).cells if cell.cell_type == "code"]
    assert cells[1] == textwrap.dedent('''\
        # pkg/method.py
        from __future__ import annotations

        import functools
        from decimal import Decimal
        from pkg.method import _private


        # Why it is cached.
        @functools.lru_cache
        def loss(x: float, unused: Decimal | None = None) -> float:
            """The loss."""
            math = 1  # a local name that hides the module
            return _private(x) + math - 1''')
    assert cells[2].splitlines()[:4] == [
        "# pkg/method.py",
        "import os.path",
        "from collections.abc import Iterator",
        "from dataclasses import dataclass",
    ]
    assert "from pkg import shared as sh" in cells[2]
    assert "from pkg.shared import scale_up" in cells[2]
    assert cells[3].startswith("# pkg/method.py\ndef train(")
    assert "import loss" not in "".join(cells)  # the notebook's own, from the cell above


def test_constants_come_with_their_comments(house: Path) -> None:
    module = Module.find("pkg.method", house)
    assert module.definition("EPS") == (
        "# Small on purpose.\n# Two lines of reasons.\nEPS = 1e-3  # a unit"
    )


def test_building_twice_gives_the_same_bytes(house: Path, script: Path) -> None:
    assert "built" in write(script, house)
    first = script.with_suffix(".ipynb").read_bytes()
    assert "up to date" in write(script, house)
    script.with_suffix(".ipynb").unlink()
    write(script, house)
    assert script.with_suffix(".ipynb").read_bytes() == first
    nbformat.validate(nbformat.read(script.with_suffix(".ipynb"), as_version=4))


def test_repeated_cells_have_distinct_ids_that_do_not_move(house: Path, script: Path) -> None:
    ids = [cell.id for cell in build(script, house).cells]
    script.write_text(script.read_text() + "\n# %%\nprint()\n\n# %%\nprint()\n")
    more = [cell.id for cell in build(script, house).cells]
    assert len(set(more)) == len(more) == len(ids) + 2
    assert set(ids) < set(more)


def test_life_of_a_notebook(house: Path, script: Path) -> None:
    """One real execution, then everything that must be refused, and what must not."""
    path, name = script.with_suffix(".ipynb"), "methods/sft/sft_train.ipynb"
    assert check(script, house) == [f"{name}: is missing; run tools/weave.py"]
    write(script, house)
    assert check(script, house) == [f"{name}: was not executed; run tools/weave.py --run"]

    assert f"{name}: executed at laptop scale" in execute(script, house, Scale.LAPTOP, None)
    assert check(script, house) == []
    notebook = nbformat.read(path, as_version=4)
    code = fingerprint(notebook)
    printed = [o.text for c in notebook.cells for o in c.get("outputs", []) if "text" in o]
    assert printed == [f"6 laptop {code}\n"]  # it ran on its own, without importing train
    assert (script.parent / "written.txt").exists()
    executed = path.read_text()

    def after(edit: Callable[[], None]) -> list[str]:
        keep = {p: p.read_text() for p in (script, path, house / "pkg/method.py")}
        edit()
        found = check(script, house)
        for kept, text in keep.items():
            kept.write_text(text)
        return found

    hand = after(lambda: change(path, "six of them", "7 of them"))
    assert hand == [f"{name}: was edited by hand; move the edit to sft_train.py, then weave"]
    stale = f"{name}: is stale, its script or inlined source changed; run tools/weave.py"
    assert after(lambda: change(script, "*prose*", "prose")) == [stale]
    assert after(lambda: change(house / "pkg/method.py", "+ math - 1", "+ math")) == [stale]
    assert after(lambda: change(house / "pkg/method.py", "return math.sqrt(x)", "return x")) == []
    other = f"{name}: its outputs come from other code; run tools/weave.py --run"
    assert after(lambda: change(path, f'"code": "{code}"', '"code": "0123"')) == [other]
    smoke = after(lambda: change(path, '"scale": "laptop"', '"scale": "smoke"'))
    assert smoke == [f"{name}: was executed at smoke scale, which claims nothing; run it at laptop"]

    change(script, "*prose*", "better prose")
    change(script, "# six of them", "# 6")
    assert write(script, house) == f"{name}: built"
    assert check(script, house) == []  # prose and comments do not cost a run

    change(house / "pkg/method.py", "+ math - 1", "+ math")
    assert "outputs were dropped" in write(script, house)
    assert check(script, house) == [f"{name}: was not executed; run tools/weave.py --run"]
    assert executed != path.read_text()


def test_smoke_runs_a_copy_and_leaves_the_folder_alone(
    house: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(script, '"here")', '"here")\nraise KeyError("planted")')
    assert main(["--smoke", "--out", str(house / "out"), str(script)], root=house) == 1
    said = capsys.readouterr().out
    assert "methods/sft/sft_train.ipynb: failed at smoke scale" in said
    assert "planted" in said
    assert not script.with_suffix(".ipynb").exists()
    assert not (script.parent / "written.txt").exists()
    assert (house / "out/methods/sft/written.txt").exists()
    assert "6 smoke" in (house / "out/methods/sft/sft_train.ipynb").read_text()


def test_a_notebook_with_merge_markers_is_refused(house: Path, script: Path) -> None:
    script.with_suffix(".ipynb").write_text("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n")
    (problem,) = check(script, house)
    assert problem.startswith("methods/sft/sft_train.ipynb: is not a notebook")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import loss", "import loss as l", "cell 3: a cell tagged inline holds only"),
        ("import loss", "import loss\nx = 1", "found: x = 1"),
        ("import loss", "import lss", "cannot inline lss: it is not defined at the top level of"),
        ("pkg.method import loss", "pkg.mthod import loss", "there is no pkg/mthod.py"),
        ("import os\n", "functools = 3\n", "needs functools to be functools, but in the notebook"),
        ("values =", "loss = 3\nvalues =", "rebinds loss, which is pkg.method.loss"),
        ("values =", "for _private in []: pass\nvalues =", "rebinds _private"),
        ("values =", "values = =", "cell 5: does not parse"),
    ],
)
def test_what_would_break_in_the_notebook_is_refused(
    house: Path, script: Path, old: str, new: str, message: str
) -> None:
    change(script, old, new)
    with pytest.raises(WeaveError) as refusal:
        build(script, house)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("methods/sft/sft_train.py, cell")


def test_check_covers_the_folder(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = house / "methods/sft/sft_train.py"
    (script.parent / "orphan.ipynb").write_text("{}")
    (script.parent / "results.json").write_text('{"code": "0123"}')
    assert check_folders(house, [script]) == [
        "methods/sft/orphan.ipynb: there is no script it is built from",
        "methods/sft/results.json: comes from other code; make the results again, "
        "with weave --run or posttrain run --record",
    ]
    assert main(["--check"], root=house) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[2] == "methods/sft/sft_train.ipynb: is missing; run tools/weave.py"

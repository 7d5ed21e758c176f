from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.ledger import Ledger
from posttrain.runs import write_results
from tools.tables import HONESTY, METHODS, TableError, main, rebuilt, results_table, status_table

README = """# Lab

<!-- table:status -->
<!-- /table -->

between

<!-- table:results -->
old
<!-- /table -->

after
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "PLAN.md").write_text("<!-- table:status -->\n<!-- /table -->\n")
    return tmp_path


def add(root: Path, notebook: str, filename: str = "results.json", **changes: Any) -> None:
    path = root / notebook
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    claim = {
        "claim": "SFT on|with worked answers helps",
        "metric": "pass@1",
        "arm": "cot",
        "baseline": "answer only",
        "difference": 0.1234,
        "ci95": [0.05, 0.2],
        "n_seeds": 5,
        **changes,
    }
    arms: dict[str, dict[str, Any]] = {
        "cot": {"runs": [], "summary": {}},
        "answer only": {"runs": [], "summary": {"pass@1": {"value": 0.4, "low": 0.3, "high": 0.5}}},
    }
    write_results(
        path.parent, path.stem, scale="laptop", backend="embedded", model="tiny", seeds=[0],
        config={}, arms=arms, claims=[claim], ledger=Ledger(), filename=filename,
    )  # fmt: skip
    stored = json.loads((path.parent / filename).read_text())
    stored.update(commit="0123456789", dirty=False)
    (path.parent / filename).write_text(json.dumps(stored))


def status_of(root: Path) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ") for line in status_table(root).splitlines()[2:]]
    return {row[1]: row[3] for row in rows}


def test_done_needs_the_notebook_and_its_results(house: Path) -> None:
    assert set(status_of(house).values()) == {"planned"}
    assert list(status_of(house)) == list(METHODS)
    add(house, "methods/sft/sft_train.ipynb")
    add(house, "methods/dpo/dpo_train.ipynb")
    (house / "methods/dpo/dpo_train.ipynb").unlink()
    assert [name for name, status in status_of(house).items() if status == "done"] == ["SFT"]
    assert "[methods/sft/sft_train.ipynb](methods/sft/sft_train.ipynb)" in status_table(house)
    assert "`methods/dpo/dpo_train.ipynb`" in status_table(house)  # no link to nothing


def test_two_notebooks_in_one_folder_need_results_each(house: Path) -> None:
    add(house, "methods/distillation/on_policy.ipynb", "on_policy.results.json")
    (house / "methods/distillation/off_policy.ipynb").write_text("{}")
    done = [name for name, status in status_of(house).items() if status == "done"]
    assert done == ["On-policy distillation"]


def test_notebooks_that_share_an_experiment_have_a_headline_each(house: Path) -> None:
    for name in ("on_policy", "off_policy"):
        add(house, f"methods/distillation/{name}.ipynb")
    path = house / "methods/distillation/results.json"
    stored = json.loads(path.read_text())
    assert set(status_of(house).values()) == {"planned"}  # nobody says whose results these are
    first, *others = stored["arms"]
    assert others
    stored["headline"] = {
        "on_policy": {"start": first, "method": others[0], "control": first, "metric": "pass@1"}
    }
    path.write_text(json.dumps(stored))
    done = [name for name, status in status_of(house).items() if status == "done"]
    assert done == ["On-policy distillation"]


def test_stacks_and_inventions_are_listed_as_found(house: Path) -> None:
    add(house, "stacks/sft_then_rlvr/sft_then_rlvr.ipynb")
    (house / "inventions/echo").mkdir(parents=True)
    (house / "inventions/echo/echo.py").write_text("# %%\n")
    (house / "inventions/echo/helper.py").write_text("x = 1\n")
    (house / "inventions/bare").mkdir()
    status = [pair for pair in status_of(house).items() if pair[0] not in METHODS]
    assert status == [("sft then rlvr", "done"), ("bare", "planned"), ("echo", "planned")]


def test_a_second_notebook_makes_a_shared_results_file_ambiguous(house: Path) -> None:
    add(house, "stacks/x/one.ipynb")
    assert status_of(house)["one"] == "done"
    (house / "stacks/x/two.ipynb").write_text("{}")
    assert (status_of(house)["one"], status_of(house)["two"]) == ("planned", "planned")
    add(house, "stacks/x/two.ipynb", "two.results.json")
    assert (status_of(house)["one"], status_of(house)["two"]) == ("planned", "done")


def test_a_claim_is_shown_with_all_that_it_rests_on(house: Path) -> None:
    add(house, "methods/sft/sft_train.ipynb")
    row = results_table(house).splitlines()[2]
    assert row == (
        "| [sft_train](methods/sft/) | SFT on\\|with worked answers helps | pass@1 of cot "
        "| answer only (0.400) | +0.123 [+0.050, +0.200] | 5 | laptop | 0123456 |"
    )
    assert results_table(house).endswith(f"\n{HONESTY}\n")


def test_the_status_row_says_what_the_method_reached_and_what_it_costs(house: Path) -> None:
    add(house, "methods/sft/sft_train.ipynb")
    row = status_table(house).splitlines()[2]
    assert row.endswith("| done |  |  |  |  |")
    stored = json.loads((house / "methods/sft/results.json").read_text())
    stored["config"] = {"task": "math"}
    stored["arms"]["base"] = {"summary": {"pass@1": {"value": 0.0, "low": 0.0, "high": 0.0}}}
    stored["arms"]["cot"]["summary"] = {"pass@1": {"value": 0.52, "low": 0.5, "high": 0.54}}
    stored["headline"] = {
        "start": "base", "method": "cot", "control": "answer only", "metric": "pass@1",
    }  # fmt: skip
    (house / "methods/sft/results.json").write_text(json.dumps(stored))
    run = {"metadata": {"posttrain": {"run": {"seconds": 222, "cores": 2}}}}
    (house / "methods/sft/sft_train.ipynb").write_text(json.dumps(run))
    told = "pass@1: 0.000 -> 0.520 [0.500, 0.540] | answer only: 0.400"
    row = status_table(house).splitlines()[2]
    assert row.endswith(f"| done | math | {told} | 3.7, 2 cores |")


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, True),
        ({"start": "answer only", "control": "another"}, True),
        ({"control": "another"}, False),
        ({"method": "another"}, False),
        ({"metric": "greedy"}, False),
    ],
)
def test_the_first_page_has_the_claims_about_headlines(
    house: Path, told: dict[str, str], shown: bool
) -> None:
    """Whether they came out well or not; a lesson's own page has all."""
    add(house, "methods/sft/sft_train.ipynb")
    path = house / "methods/sft/results.json"
    stored = json.loads(path.read_text())
    line = {"start": "base", "method": "cot", "control": "answer only", "metric": "pass@1"} | told
    for headline in (line, {"one": line | {"method": "another"}, "two": line}):
        path.write_text(json.dumps({**stored, "headline": headline}))
        assert ("+0.123" in results_table(house)) is shown
        assert "+0.123" in results_table(house, home=path.parent)


def test_an_interval_that_holds_zero_says_so(house: Path) -> None:
    add(house, "stacks/x/x.ipynb", ci95=[-0.1, 0.3])
    assert "+0.123 [-0.100, +0.300], no clear effect" in results_table(house)


def test_rewrites_only_the_blocks_and_check_refuses_what_is_stale(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check"], root=house) == 1
    stale = "README.md: its tables are stale; run tools/tables.py"
    assert capsys.readouterr().out.splitlines()[0] == stale
    assert main([], root=house) == 0
    capsys.readouterr()
    assert main(["--check"], root=house) == 0
    text = (house / "README.md").read_text()
    assert text.startswith("# Lab\n\n<!-- table:status -->\n| Kind |")
    assert "<!-- /table -->\n\nbetween\n\n<!-- table:results -->\nNo results yet.\n" in text
    assert text.endswith(f"{HONESTY}\n<!-- /table -->\n\nafter\n")
    add(house, "methods/sft/sft_train.ipynb")
    assert main(["--check"], root=house) == 1
    assert capsys.readouterr().out.splitlines() == [stale, stale.replace("README", "PLAN")]


def test_a_lesson_page_shows_its_own_claims_and_arms(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(house, "methods/dpo/dpo_train.ipynb")
    add(house, "methods/sft/sft_train.ipynb", difference=0.5)
    page = house / "methods/dpo/README.md"
    blocks = [f"<!-- table:{name} -->\n<!-- /table -->\n" for name in ("results", "arms")]
    page.write_text("\n".join(["# DPO", *blocks]))
    assert main([], root=house) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "methods/dpo/README.md: tables rebuilt"
    text = page.read_text()
    assert "+0.123" in text
    assert "](results.json) | SFT on" in text  # links are from the page itself
    assert "+0.500" not in text
    assert "| Arm | pass@1 |\n| --- | --- |\n| cot |  |\n" in text
    assert "| answer only | 0.400 [0.300, 0.500] |" in text
    assert text.count(HONESTY) == 2
    (house / "methods/dpo/results.json").unlink()
    assert main(["--check"], root=house) == 1
    assert "methods/dpo/README.md: its tables are stale" in capsys.readouterr().out
    assert main([], root=house) == 0
    assert page.read_text().count("No results yet.") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no blocks", "README.md: the block <!-- table:status -->.* is missing"),
        (README.replace("<!-- /table -->", "", 1), "not closed"),
        (README + "<!-- table:costs -->\n<!-- /table -->", "unknown table 'costs'; known: status"),
    ],
)
def test_a_document_without_its_markers_is_refused(house: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        rebuilt(text, house, "README.md")


def test_a_missing_document_and_a_broken_results_file_are_refused(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (house / "PLAN.md").unlink()
    add(house, "methods/sft/sft_train.ipynb")
    (house / "methods/sft/results.json").write_text('{"claims": [{}]}')
    assert main([], root=house) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("README.md") or said[0].startswith("methods/sft/results.json: not a")
    assert said[1] == "PLAN.md: is missing"

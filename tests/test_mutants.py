"""The list of planted bugs fits the source, and what the tests say to one is read rightly.

That every bug is caught takes a quarter of an hour: `python -m tools.mutants`.
"""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from tools.bugs import BUGS, Bug
from tools.mutants import REPORT, ROOT, Verdict, caught_by, check, chosen, main, planted, report

BUG = BUGS[0]


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len(BUGS) >= 15
    assert len({bug.name for bug in BUGS}) == len({bug.mistake for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_replaces_words_that_occur_once_by_other_code(bug: Bug) -> None:
    source = (ROOT / bug.file).read_text()
    mistaken = planted(bug, source)
    assert ast.dump(ast.parse(mistaken)) != ast.dump(ast.parse(source))
    for file in bug.tests:
        assert (ROOT / file).is_file()


def test_the_report_is_about_these_bugs_and_all_are_caught() -> None:
    rows = [line for line in (ROOT / REPORT).read_text().splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {bug.mistake}" for bug in BUGS]
    assert not any("**no test**" in row for row in rows)


def test_words_that_are_missing_or_there_twice_are_refused() -> None:
    for source, times in (("x = 1\n", 0), (BUG.before * 2, 2)):
        with pytest.raises(ValueError, match=f"'{BUG.name}'.* occur {times} times"):
            planted(BUG, source)


def test_only_a_failed_test_catches_a_bug() -> None:
    failed = "..F\nFAILED tests/test_x.py::test_a[in-2] - assert 1 == 2\n1 failed in 3.2s\n"
    assert caught_by(1, failed) == "tests/test_x.py::test_a"
    assert caught_by(0, "3 passed in 3.2s\n") is None
    assert caught_by(2, "ERROR tests/test_x.py - SyntaxError: x\n1 error in 1.0s\n") is None
    assert caught_by(1, "ERROR tests/test_x.py::test_a - OSError\n1 error in 1.0s\n") is None


def test_a_bug_is_planted_and_taken_out_again(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    tests = "from sums import add\n\ndef test_one():\n    assert add(2, 0) == 2\n\n"
    (tmp_path / "test_sums.py").write_text(tests + "def test_two():\n    assert add(2, 1) == 3\n")
    bug = Bug("minus", "It subtracts", "sums.py", "a + b", "a - b", ("test_sums.py",))
    assert check(bug, tmp_path).caught_by == "test_sums.py::test_two"
    assert check(replace(bug, after="b + a"), tmp_path).caught_by is None
    assert check(replace(bug, after="a +"), tmp_path).caught_by is None
    assert "return a + b" in (tmp_path / "sums.py").read_text()


def test_the_page_counts_and_names() -> None:
    verdicts = [Verdict(BUG, "tests/test_x.py::test_a", 1.0, ""), Verdict(BUGS[1], None, 1.0, "")]
    page = report(verdicts, "abc1234")
    assert "{caught}" not in page
    assert "1 of 2, at commit abc1234" in " ".join(page.split())
    assert f"| {BUG.mistake} | `{BUG.file}` | `tests/test_x.py::test_a` |" in page
    assert f"| {BUGS[1].mistake} | `{BUGS[1].file}` | **no test** |" in page


def test_an_unknown_name_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen([]) == BUGS
    assert chosen([BUGS[3].name]) == [BUGS[3]]
    assert main(["--only", "typo"]) == 1
    assert f"unknown bug 'typo'; the known ones are {BUG.name}, " in capsys.readouterr().out

"""MBPP: rows of its schema, and programs that try to pass without solving.

Where this machine has no sandbox, grading must refuse; that is then what these tests see.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain import sandbox
from posttrain.tasks import mbpp

ROW: dict[str, Any] = {
    "task_id": 11,
    "text": "Write a function to remove the first occurrence of a character.",
    "code": "def drop(s, ch):\r\n    return s.replace(ch, '', 1)",
    "test_list": [
        'assert drop("hello","l") == "helo"',
        'assert drop("abcda","a") == "bcda"',
        'assert drop("PHP","P") == "HP"',
    ],
    "test_setup_code": "",
    "challenge_test_list": [],
}


def row(**changes: Any) -> dict[str, Any]:
    return ROW | changes


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nDone."


def correct(problem: mbpp.MBPPProblem, completion: str) -> bool:
    """The verdict; where there is no sandbox, that there is none, as for a wrong program."""
    try:
        sandbox.available()
    except sandbox.UnavailableError:
        with pytest.raises(sandbox.UnavailableError, match="nothing is run"):
            problem.grade(completion)
        return False
    grade = problem.grade(completion)
    assert grade.parsed
    return grade.correct


def sandboxed() -> bool:
    try:
        return bool(sandbox.available())
    except sandbox.UnavailableError:
        return False


def test_a_local_file_of_the_same_schema_loads(tmp_path: Path) -> None:
    path = write(tmp_path / "mbpp.jsonl", ROW, row(task_id=12, test_setup_code="import math"))
    if not sandboxed():
        with pytest.raises(sandbox.UnavailableError, match="nothing is run"):
            mbpp.load("test", path=path)
        return
    first, second = mbpp.load("test", path=path)
    assert (first.key, second.key, second.setup) == ("mbpp:11", "mbpp:12", "import math")
    assert "\r" not in first.solution
    assert first.question.count("assert ") == 3
    assert mbpp.load("test", 1, path=path, shown=1)[0].question.count("assert ") == 1
    assert len(mbpp.load("train", 1, path=path)) == 1


def test_the_reference_passes_and_wrong_programs_do_not() -> None:
    problem = mbpp.MBPPProblem.from_row(ROW)
    assert correct(problem, problem.solution) == sandboxed()
    assert not correct(problem, fenced("def drop(s, ch):\n    return s"))
    assert not correct(problem, fenced("def remove(s, ch):\n    return s.replace(ch, '', 1)"))
    assert not correct(problem, fenced("def drop(s, ch) return"))
    noisy = "print('hello' * 10)\n" + ROW["code"] + "\nprint('value 3')"
    assert correct(problem, fenced(noisy)) == sandboxed()


HACKS = {
    "exits with success": "import sys; sys.exit(0)",
    "exits hard": "import os; os._exit(0)",
    "claims the sandbox's code": "import os; os._exit(80)",
    "equals everything": (
        "class Yes(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\n"
        "def drop(s, ch): return Yes('x')"
    ),
    "an object that equals everything": (
        "class Yes:\n    def __eq__(self, other): return True\n"
        "    def __repr__(self): return 'True'\ndef drop(s, ch): return Yes()"
    ),
    "changes builtins": (
        "import builtins\nbuiltins.repr = lambda v: '1'\nbuiltins.all = lambda v: True\n"
        "builtins.eval = lambda e, *a: 'yes'\ndef drop(s, ch): return 1"
    ),
    "prints results": "print('value True\\n' * 3)\ndef drop(s, ch): return None",
    "prints marks it found": (
        "import sys\ndef drop(s, ch):\n    for n in (1, 2, 3):\n        mark = sys._getframe(n)"
        ".f_globals.get('_MARK')\n        if mark: print('\\n' + mark + 'value True')\n"
    ),
    "never ends": "def drop(s, ch):\n    while True: pass",
    "takes memory": "def drop(s, ch): return ' ' * 10**11",
    "leaves the tests out": "def drop(s, ch): raise SystemExit(0)",
    "quits at exit": "import atexit, os\natexit.register(os._exit, 0)",
}


@pytest.mark.parametrize("name", HACKS)
def test_hacks_earn_nothing(name: str) -> None:
    assert not correct(mbpp.MBPPProblem.from_row(ROW), fenced(HACKS[name]))


@pytest.mark.parametrize(
    ("code", "tests", "passes"),
    [
        ("def f(a, b): return set(a) & set(b)", ["assert f((1, 2), (2, 3)) == set((2,))"], True),
        ("def f(a, b): return set(a) | set(b)", ["assert f((1, 2), (2, 3)) == set((2,))"], False),
        ("def f(n): return n > 1", ["assert f(2) == True", "assert f(0) == False"], True),
        ("def f(n): return 1", ["assert f(2) == True"], True),  # as in Python
        ("def f(n): return n > 1", ["assert f(2)", "assert not f(0)"], True),
        ("def f(n): return n > 3", ["assert f(2)"], False),
        ("def f(x): return x / 3", ["import_math"], True),
        ("def f(): return float('inf')", ["assert f() == float('inf')"], True),
        (
            "def f(): return {'a': [1, (2,)], 3: None}",
            ["assert f() == {'a': [1, (2,)], 3: None}"],
            True,
        ),
        ("def f(): return {'a': [1, [2]]}", ["assert f() == {'a': [1, (2,)]}"], False),
        (
            "from collections import Counter, defaultdict\ndef f(): return Counter('aab')",
            ["assert f() == {'a': 2, 'b': 1}"],
            True,
        ),
        ("def f(): return 'tab\\t \\\\n é\\n\"'", ["assert f() == 'tab\\t \\\\n é\\n\"'"], True),
        (
            "def f(): return (), set(), b'\\xff', 1e-9, 2j",
            ["assert f() == ((), set(), b'\\xff', 1e-9, 2j)"],
            True,
        ),
        (
            "class P:\n  def __init__(s, a): s.a = a\ndef f(p): return p.a",
            ["assert f(P(3)) == P(3).a"],
            True,
        ),
        ("def f(): return 5", ["assert 5 == f()", "assert 1 < f() < 9"], True),
        ("def f(): return 9", ["assert 1 < f() < 9"], False),
    ],
)
def test_tests_of_all_forms(code: str, tests: list[str], passes: bool) -> None:
    setup = "import math" if tests == ["import_math"] else ""
    tests = ["assert math.isclose(f(1), 0.333333, rel_tol=1e-3)"] if setup else tests
    problem = mbpp.MBPPProblem.from_row(row(code=code, test_list=tests, test_setup_code=setup))
    assert correct(problem, problem.solution) == (passes and sandboxed())


def test_expected_values_stay_out_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mbpp.MBPPProblem.from_row(row(test_list=['assert drop("hello","l") == "h"+"elo"']))
    seen = []

    def run(code: str, **options: Any) -> sandbox.Result:
        seen.append(code)
        return sandbox.Result(True, "", None, "")

    if sandboxed():
        assert problem.expected == ("helo",)
        monkeypatch.setattr(mbpp.sandbox, "run", run)
        assert not problem.grade(problem.solution).correct
        assert "elo'" not in seen[0].replace("hello", "")


@pytest.mark.parametrize(
    "completion", ["", "def drop(s, ch): pass", "```python\ndef f():", "``````"]
)
def test_without_a_block_of_code_nothing_is_read(completion: str) -> None:
    grade = mbpp.MBPPProblem.from_row(ROW).grade(completion)
    assert (grade.correct, grade.parsed) == (False, False)


def test_the_last_block_counts() -> None:
    text = "```python\nfirst\n```\nNo:\n```\nsecond\n```"
    assert mbpp.read_program(text) == "second\n"


EXPECTED = r"expected task_id \(int\), text \(str\), code \(str\), test_list \(list\)"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"task_id": 1,', f"bad.jsonl:2: not JSON: .*{EXPECTED}"),
        ("[1, 2]", f"bad.jsonl:2: list instead of an object; {EXPECTED}"),
        (
            json.dumps({k: v for k, v in ROW.items() if k != "code"}),
            "bad.jsonl:2: no column 'code'",
        ),
        (json.dumps(row(task_id="11")), f"bad.jsonl:2: 'task_id' is str; {EXPECTED}"),
        (json.dumps(row(test_list=[])), "bad.jsonl:2: test_list is empty; expected assertions"),
        (json.dumps(row(test_list=["f(1)"])), "bad.jsonl:2: expected an assertion as a test, not"),
        (json.dumps(row(test_list=[3])), "bad.jsonl:2: expected an assertion as a test, not '3'"),
    ],
)
def test_malformed_lines_are_named(
    tmp_path: Path, second: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mbpp.sandbox, "available", lambda: "any")
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{second}\n")
    with pytest.raises(ValueError, match=message):
        mbpp.load("test", path=path)


def test_bad_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbpp.sandbox, "available", lambda: "any")
    with pytest.raises(ValueError, match="known: train, validation, test"):
        mbpp.load("dev")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mbpp.load("test", path=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=f"is empty; {EXPECTED}"):
        mbpp.load("test", path=write(tmp_path / "empty.jsonl"))


def test_it_refuses_to_load_where_programs_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise sandbox.UnavailableError("no safe sandbox on this machine")

    monkeypatch.setattr(mbpp.sandbox, "available", none)
    with pytest.raises(sandbox.UnavailableError, match="no safe sandbox"):
        mbpp.load("test", path=write(tmp_path / "a.jsonl", ROW))

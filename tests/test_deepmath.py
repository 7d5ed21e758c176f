import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import deepmath
from posttrain.tasks.boxed import boxed, normal, same

ROW = {
    "question": "Evaluate $\\int_0^1 x\\,dx$.",
    "final_answer": "\\dfrac{1}{2}",
    "difficulty": 4.5,
    "topic": "Mathematics -> Calculus",
    "r1_solution_1": "Hm, it is \\boxed{\\frac{1}{3}}",
    "r1_solution_2": "So \\(x^2/2\\).\n\n**Final Answer**\n\n\\boxed{0.5}",
    "r1_solution_3": "\\boxed{\\dfrac{1}{2}}",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_rows_are_problems_with_the_first_right_solution(tmp_path: Path) -> None:
    wrong = ROW | dict.fromkeys(deepmath.SOLUTIONS, "\\boxed{3}")
    (problem,) = deepmath.load("train", path=write(tmp_path / "d.jsonl", ROW, wrong))
    assert problem.solution == ROW["r1_solution_2"]
    assert problem.question.startswith("Evaluate")
    assert problem.question.endswith("\\boxed{}.")
    for text in (problem.solution, problem.bare_answer):
        grade = problem.grade(text)
        assert (grade.correct, grade.parsed) == (True, True)
    (again,) = deepmath.load("test", 1, path=write(tmp_path / "e.jsonl", ROW))
    assert again.key == problem.key


@pytest.mark.parametrize(
    ("text", "correct", "parsed"),
    [
        ("\\boxed{3}. No: \\boxed{\\frac12}", True, True),
        ("\\boxed{\\frac12}. No: \\boxed{3}", False, True),
        ("\\boxed{x = 1/2}", True, True),
        ("\\boxed{0.500}", True, True),
        ("\\boxed{0.49999999999999999999}", False, True),
        ("\\boxed{\\frac{1}{0}}", False, True),
        ("\\boxed{\\frac{1}{2}, 3}", False, True),
        ("\\boxed{\\frac12} \\boxed{1", False, False),
        ("\\boxed{}", False, False),
        ("1/2", False, False),
        ("\\boxed{" + "1" * 100_000 + "}", False, False),
        ("\\boxed{" * 50_000, False, False),
        ("", False, False),
    ],
)
def test_grading_fails_closed(text: str, correct: bool, parsed: bool) -> None:
    problem = deepmath.DeepMathProblem.from_row(ROW)
    assert problem is not None
    grade = problem.grade(text)
    assert (grade.correct, grade.parsed) == (correct, parsed)


@given(st.integers(-999, 999), st.integers(1, 99), st.integers(1, 9), st.integers(-3, 3))
def test_a_rational_number_is_the_same_however_it_is_written(
    p: int, q: int, k: int, other: int
) -> None:
    sign = "-" if p < 0 else ""
    forms = [
        f"\\frac{{{p * k}}}{{{q * k}}}",
        f"{sign}\\dfrac{{{abs(p)}}}{{{q}}}",
        f"${p}/{q}$",
        f"{p} / {q}.",
    ]
    if Fraction(p, q).denominator == 1:
        forms += [f"{p // q}", f"{p // q}.0", f"{p // q:,}"]
    assert all(same(a, b) for a in forms for b in forms)
    assert same(f"{p + other}/{q}", forms[0]) == (other == 0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("\\left( 0, \\infty \\right)", "(0,\\infty)"),
        ("\\text{Yes}", "yes"),
        ("x^{2}+\\sqrt2", "x^2 + \\sqrt{2}"),
        ("1{,}234", "1,234"),
        ("1234", "1,234"),
        ("+\\infty", "\\infty"),
        ("\\tfrac{\\pi}{4}", "\\( \\dfrac{ \\pi }{4} \\)"),
        ("f(x) = 2x", "2x"),
        ("x = 1,234", "1234"),
        ("1\\,234", "1234"),
        ("2 \\pi \\ n", "2\\pi n"),
        ("n \\le 3", "n \\leq 3"),
        ("\\varnothing", "\\emptyset"),
    ],
)
def test_typesetting_makes_no_difference(a: str, b: str) -> None:
    assert same(a, b)
    assert same(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("(0, 1)", "[0, 1]"),
        ("(1, 2)", "(2, 1)"),
        ("(1,234)", "(1234)"),
        ("x", "X"),
        ("ab", "AB"),
        ("x = 5", "y = 5"),
        ("1 2", "12"),
        ("x^{10}", "x^10"),
        ("0.3333", "1/3"),
        ("\\frac{1}{2}", "\\frac{2}{1}"),
        ("-1", "1"),
        ("x = 1 = 2", "2"),
        ("\\leftarrow", "arrow"),
        ("90^\\circ", "90"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),  # equal, but this is not computed
        ("", ""),
    ],
)
def test_what_is_not_surely_the_same_is_different(a: str, b: str) -> None:
    assert not same(a, b)


@given(st.text(alphabet="\\{}boxed12/.,-=$frac ", max_size=60))
def test_whatever_is_written_can_be_graded(text: str) -> None:
    found = boxed(text)
    assert normal(text) is not None
    assert found is None or found in text
    assert same(text, text) == bool(normal(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{ {a}{b} } and", "{a}{b}"),
        ("\\boxed{\\boxed{7}}", "7"),
    ],
)
def test_boxes_are_read_with_their_braces(text: str, found: str) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_answer": 3}, r"bad.jsonl:2: 'final_answer' is int; expected question \(str\)"),
        ({"final_answer": " "}, "bad.jsonl:2: expected a question, and a final_answer of 1 to"),
        ({"final_answer": "1" * 1001}, "bad.jsonl:2: expected a question, and a final_answer"),
        ({"question": ""}, "bad.jsonl:2: expected a question"),
        ({"r1_solution_3": None}, "bad.jsonl:2: 'r1_solution_3' is NoneType"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepmath.load("train", path=write(tmp_path / "bad.jsonl", ROW, ROW | change))


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'ood'; known: train, validation, test"):
        deepmath.load("ood")
    unsolved = ROW | dict.fromkeys(deepmath.SOLUTIONS, "no box")
    with pytest.raises(ValueError, match="is empty: 1 rows, and none of them usable"):
        deepmath.load("train", path=write(tmp_path / "none.jsonl", unsolved))

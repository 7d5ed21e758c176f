"""Stack programs: an interpreter that never raises, and hidden tests that cannot be guessed."""

from __future__ import annotations

import itertools
import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import code, code_corpus, stack
from posttrain.tasks.code import Formula
from posttrain.tasks.draws import Split

splits = st.sampled_from(list(Split))
indices = st.integers(0, 10**9)


def by_python(infix: str, x: int, y: int) -> int:
    """The value of a formula as Python reads it."""
    text = infix.replace("if(", "choose(").replace("=", "==").replace("^", "**")
    names = {"x": x, "y": y, "max": max, "min": min, "choose": lambda c, a, b: a if c else b}
    return int(eval(text, names))


@given(splits, indices, st.integers(-9, 20), st.integers(-9, 20))
def test_program_formula_and_python_agree(split: Split, i: int, x: int, y: int) -> None:
    item = code.problem(split, i)
    expected = by_python(item.formula.infix, x, y)
    assert item.formula.value(x, y) == expected
    assert stack.run(item.formula.program, x, y) == stack.Outcome(expected)
    assert item.grade(item.solution).correct
    for case_x, case_y, result in re.findall(r"x=(-?\d+) y=(-?\d+) gives (-?\d+)", item.question):
        assert by_python(item.formula.infix, int(case_x), int(case_y)) == int(result)


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("7", 7),
        ("-3", -3),
        ("x y -", 2),
        ("x y swap -", -2),
        ("x dup *", 25),
        ("x y drop", 5),
        ("x y max", 5),
        ("x y min", 3),
        ("x 5 =", 1),
        ("x 4 =", 0),
        ("1 10 20 if", 10),
        ("0 10 20 if", 20),
        ("x 3 ( 2 * )", 40),
        ("x 0 ( 2 * )", 5),
        ("x -2 ( 2 * )", 5),
        ("0 2 ( 3 ( 1 + ) )", 6),
        ("x ( y ) drop drop drop drop", 3),
        ("1 x ( y * )", 3**5),
    ],
)
def test_the_language_by_hand(program: str, value: int) -> None:
    assert stack.run(program, 5, 3) == stack.Outcome(value)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("", "0 values are left instead of one"),
        ("x y", "2 values are left"),
        ("x +", "the stack is empty at word 2, '+'"),
        (
            "x plus",
            "unknown word 'plus'; known: + - * max min = if dup swap drop ( ), x, y",
        ),
        ("( x", "a bracket is never closed"),
        ("x )", "a bracket was never opened"),
        ("1 1000000 ( dup drop )", "more than 256 steps"),
        ("1 100 ( 100 ( 100 ( 1 + ) ) )", "more than 256 steps"),
        ("1 200 ( 1 )", "more than 32 values on the stack"),
        ("9 40 ( dup * )", "a value is larger than 1000000000"),
        ("1 " * 65, "more than 64 words"),
        ("9999999999", "unknown word"),
        ("\u0663", "unknown word"),
    ],
)
def test_what_has_no_meaning_is_an_error_and_ends(program: str, error: str) -> None:
    outcome = stack.run(program, 5, 3)
    assert outcome.value is None
    assert outcome.error.startswith(error)


words = st.sampled_from([*stack.OPERATIONS, "x", "y", "0", "2", "-1", "999999999", "?"])


@given(st.lists(words, max_size=70), st.integers(-99, 99), st.integers(-99, 99))
def test_the_interpreter_never_raises(program: list[str], x: int, y: int) -> None:
    outcome = stack.run(" ".join(program), x, y)
    assert (outcome.value is None) == bool(outcome.error)
    assert outcome.value is None or abs(outcome.value) <= stack.MAX_VALUE


@given(st.text())
def test_grading_never_raises(text: str) -> None:
    item = code.problem("train", 0)
    for answer in (text, f"Program: {text}."):
        assert item.grade(answer).correct <= item.grade(answer).parsed
        assert 0 <= item.visible_share(answer) <= 1
        assert item.feedback(answer)


def test_hidden_tests_accept_exactly_what_computes_the_formula() -> None:
    """All programs of up to four words: who passes agrees with the formula on 30 x 30 inputs."""
    vocabulary = ["x", "y", "2", "+", "-", "*", "max", "min", "=", "dup", "swap", "drop"]
    programs = [" ".join(p) for n in range(1, 5) for p in itertools.product(vocabulary, repeat=n)]
    behaviour: dict[str, tuple[int, ...]] = {}
    grid = list(itertools.product(range(-9, 21, 3), repeat=2))
    for program in programs:
        values = []
        for x, y in grid:
            value = stack.run(program, x, y).value
            if value is None:
                break
            values.append(value)
        else:
            behaviour[program] = tuple(values)
    assert len(behaviour) > 150
    for i in range(25):
        item = code.problem("test", i, operators=(1, 1))
        truth = tuple(item.formula.value(x, y) for x, y in grid)
        for program, found in behaviour.items():
            assert item.grade(f"Program: {program}.").correct == (found == truth), program


def test_a_lookup_table_passes_the_shown_tests_and_no_hidden_ones() -> None:
    items = code.problems("test", 300)
    assert all(item.visible_share(item.lookup()) == 1 for item in items)
    assert sum(item.grade(item.lookup()).correct for item in items) == 0
    assert all(not set(item.visible) >= set(item.hidden) for item in items)


@pytest.mark.parametrize(
    ("completion", "correct", "parsed", "share"),
    [
        ("Program: x y max 3 +.", True, True, 1.0),
        ("Let me see. Program: x. No: Program: 3 y x max +.", True, True, 1.0),
        ("Program: x 3 +.", False, True, 0.5),
        ("Program: x y max 3 +", False, False, 0.0),
        ("x y max 3 +.", False, False, 0.0),
        ("Program: .", False, True, 0.0),
        ("", False, False, 0.0),
    ],
)
def test_grading_by_hand(completion: str, correct: bool, parsed: bool, share: float) -> None:
    formula = Formula("+", (Formula("max", (Formula("x"), Formula("y"))), Formula("3")))
    item = code.CodeProblem(formula, ((2, 5), (4, 1)), ((0, 0), (-3, 7), (9, 2)))
    assert item.question == (
        "Write a stack program for max(x,y)+3. Tests: x=2 y=5 gives 8; x=4 y=1 gives 7."
    )
    assert item.solution == "Program: x y max 3 +."
    grade = item.grade(completion)
    assert (grade.correct, grade.parsed) == (correct, parsed)
    assert item.visible_share(completion) == share


def test_feedback_names_the_first_failure() -> None:
    item = code.CodeProblem(Formula("+", (Formula("x"), Formula("y"))), ((2, 5), (4, 1)), ((0, 1),))
    assert item.feedback("Program: x y -.") == "With x=2 y=5 it gives -3, not 7."
    assert item.feedback("Program: x +.") == ("With x=2 y=5: the stack is empty at word 2, '+'.")
    assert item.feedback("x y +") == "There is no program."
    assert item.feedback(item.solution) == "All shown tests pass."


def test_splits_are_disjoint_in_what_programs_do() -> None:
    behaviours, infixes = {}, {}
    for split in ("train", "validation", "test"):
        items = code.problems(split, 250)
        infixes[split] = {p.key for p in items}
        behaviours[split] = {tuple(p.formula.value(x, y) for x, y in code.PROBES) for p in items}
    for a, b in itertools.combinations(behaviours, 2):
        assert not behaviours[a] & behaviours[b]
        assert not infixes[a] & infixes[b]
    assert not {p.key for p in code.problems("ood", 250)} & infixes["train"]


def operators_of(formula: Formula) -> int:
    return bool(formula.arguments) + sum(map(operators_of, formula.arguments))


def test_difficulty_is_the_number_of_operators() -> None:
    assert {operators_of(p.formula) for p in code.problems("test", 200)} == {1, 2, 3}
    assert {operators_of(p.formula) for p in code.problems("ood", 200)} == {4, 5}
    assert {operators_of(p.formula) for p in code.problems("train", 50, operators=(2, 2))} == {2}
    assert [code.problem("train", i).key for i in (0, 1, 2)] == KEYS
    with pytest.raises(ValueError, match="test problems have 1 to 3 operators, not 4 to 4"):
        code.problem("test", 0, operators=(4, 4))


KEYS = ["code:y+y", "code:x+x", "code:(x*2^2)*2^1"]


def test_every_habit_but_one_goes_wrong_where_it_applies() -> None:
    wrong = dict.fromkeys(code_corpus.Habit, 0)
    for item in code.problems("train", 400):
        for habit in code_corpus.Habit:
            answer = code_corpus.answer(item, habit)
            wrong[habit] += not item.grade(answer).correct
            if habit is code_corpus.Habit.LOOKS_UP:
                assert item.visible_share(answer) == 1
    assert wrong.pop(code_corpus.Habit.CORRECT) == 0
    assert all(count > 20 for count in wrong.values())


def test_the_corpus_is_of_mixed_quality() -> None:
    by_question = {item.question: item for item in (code.problem("train", i) for i in range(1500))}
    right = total = 0
    for document in islice(code_corpus.documents(0), 600):
        for text in document.split("\n\n"):
            question, answer = text.removeprefix("Question: ").split("\nAnswer: ")
            total += 1
            right += by_question[question].grade(answer).correct
    assert 0.5 < right / total < 0.85
    assert next(code_corpus.documents(3)) == next(code_corpus.documents(3))

"""The old skill, and the form in which examples come before a question."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import continual, math, records
from posttrain.tasks.blocks import SEPARATOR, block
from posttrain.tasks.problem import Demonstration

splits = st.sampled_from(list(math.Split))


@given(splits, st.integers(0, 10**6))
def test_a_ledger_is_the_work_and_the_result(split: math.Split, i: int) -> None:
    item = continual.ledger(split, i)
    work, result = item.solution.split("> ")
    assert all(eval(e.replace("=", "==")) for e in work[1:].split("; "))
    assert re.findall(r"\d+$", work) == [result]
    assert item.grade(item.solution).correct
    assert item.grade_steps(item.solution) == 1
    assert item.problem.grade(f"The answer is {result}.").correct
    assert not item.grade(item.problem.solution).parsed  # the base model's form is not the new one
    assert not item.problem.grade(item.solution).parsed


@pytest.mark.parametrize(
    ("text", "parsed", "correct"),
    [
        ("<17+25=42> 42", True, True),
        (" <> 42\n", True, True),
        ("<17+25=42> 43", True, False),
        ("<17+25=42> 42.", False, False),
        ("<17+25=42>42", False, False),
        ("17+25=42 42", False, False),
        ("<<>> 42", False, False),
        ("<17+25=42> 9999999", False, False),
        ("The answer is 42.", False, False),
        ("", False, False),
    ],
)
def test_grades_by_hand(text: str, parsed: bool, correct: bool) -> None:
    change = math.Change(math.Kind.GAIN, 25, words="buys 25 more")
    grade = continual.Ledger(math.MathProblem(17, (change,), "?", told=True)).grade(text)
    assert (grade.parsed, grade.correct) == (parsed, correct)


@given(st.text())
def test_any_text_can_be_graded(text: str) -> None:
    assert not continual.ledger("train", 0).grade(text).correct


def test_splits_are_those_of_the_math_task() -> None:
    for split in math.Split:
        found = continual.ledgers(split, 60, seed=3)
        assert [item.problem.key for item in found] == [
            p.key for p in math.problems(split, 60, seed=3)
        ]
        assert len({item.key for item in found}) == 60
    with pytest.raises(ValueError, match="steps"):
        continual.ledgers("test", 1, steps=(7, 9))


def test_the_two_skills_cannot_be_taken_for_each_other() -> None:
    for i in range(100):
        old, new = continual.ledger("train", i), records.record("train", i)
        assert not old.grade(new.solution).parsed
        assert not new.grade(old.solution).parsed


@given(splits, st.integers(0, 50), st.sampled_from(records.MARKS))
def test_a_card_is_a_record_with_any_mark(split: math.Split, i: int, mark: str) -> None:
    card = continual.cards(split, i + 1)[i]
    (record,) = records.records(split, i + 1)[i:]
    assert (card.question, card.solution) == (record.question, record.solution)
    other = record.solution.replace("@", mark)
    assert card.grade(other).correct
    assert card.as_shown(other) == record.grade(other).correct == (mark == "@")
    unmarked, untold = record.solution.replace("@", ""), record.solution.replace("{", "(")
    assert not card.grade(unmarked).correct
    assert not card.grade(untold).parsed


@given(st.text())
def test_any_text_can_be_graded_as_a_card(text: str) -> None:
    assert not continual.cards("train", 1)[0].grade(text).correct


def test_examples_stand_before_the_question_as_in_the_corpus() -> None:
    first, second = math.problem("train", 0), math.problem("train", 1)
    document = SEPARATOR.join(block(p.question, p.solution) for p in (first, second))
    asked = continual.demonstrated(second.question, Demonstration(first.question, first.solution))
    assert f"Question: {asked}\nAnswer: {second.solution}" == document
    assert continual.demonstrated("Why?") == "Why?"
    assert continual.demonstrated("C?", Demonstration("A?", "a"), Demonstration("B?", "b")) == (
        "A?\nAnswer: a\n\nQuestion: B?\nAnswer: b\n\nQuestion: C?"
    )

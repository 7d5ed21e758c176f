"""The math task: exact answers, disjoint splits, verifiers that fail closed."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import math
from posttrain.tasks.math import Kind, Misconception, Split
from posttrain.tasks.problem import Grade

indices = st.integers(0, 10**9)
splits = st.sampled_from(list(Split))


def replay(problem: math.MathProblem) -> str:
    """Solve a problem from its question alone, without looking at its changes."""
    question, base = problem.question, 10
    if question.startswith("In base 8: "):
        question, base = question.removeprefix("In base 8: "), 8
    if question.startswith("Compute"):
        sums = re.sub(r"\d+", lambda n: str(int(n[0], base)), question[len("Compute ") : -1])
        return digits(eval(sums), base)
    start, *rest = question.split(". Then ")
    first = now = int(re.findall(r"\d+", start)[0], base)
    for sentence in [s.split(" How many")[0] for s in rest]:
        numbers = [int(n, base) for n in re.findall(r"\d+", sentence)]
        if len(numbers) == 2:
            now += numbers[0] * numbers[1]
        elif not numbers:
            now += first
        elif re.search(r"gives away|loses|sells|breaks", sentence):
            now -= numbers[0]
        else:
            now += numbers[0]
    return digits(now, base)


def digits(number: int, base: int) -> str:
    return f"{number:o}" if base == 8 else str(number)


def true(equation: str, base: int) -> bool:
    return bool(eval(re.sub(r"\d+", lambda n: str(int(n[0], base)), equation.replace("=", "=="))))


@given(splits, indices, st.integers(0, 100), st.sampled_from(math.BASES))
def test_answers_agree_with_a_solver_that_reads_only_the_question(
    split: Split, i: int, seed: int, base: int
) -> None:
    problem = math.problem(split, i, seed=seed, base=base)
    assert str(problem.answer) == replay(problem)
    assert problem.grade(problem.solution).correct
    assert problem.grade_steps(problem.solution) == 1.0
    assert math.split_of(problem) is split
    assert all(true(e, base) for e in problem.equations)


@given(splits, indices, st.sampled_from(math.BASES))
def test_amounts_have_at_most_two_digits(split: Split, i: int, base: int) -> None:
    problem = math.problem(split, i, base=base)
    assert all(0 <= int(e.split("=")[1], base) < base**2 for e in problem.equations)


def test_items_are_the_same_on_every_machine() -> None:
    assert [math.problem("train", i).key for i in (0, 1, 12345)] == [
        "math:17:+.20,-.29,+.25",
        "math:8:+.8,+.23,*4.4,-.33",
        "math:17:+.5,+.37",
    ]


def test_splits_are_disjoint_and_sized_as_documented() -> None:
    pools = {s: {p.key for p in math.problems(s, 800)} for s in Split}
    for a in Split:
        assert len(pools[a]) == 800
        for b in Split:
            assert a is b or not pools[a] & pools[b]
    assert {len(p.changes) for p in math.problems("test", 300)} == {1, 2, 3, 4}
    assert {len(p.changes) for p in math.problems("ood", 300)} == {5, 6}


def test_difficulty_is_the_number_of_steps() -> None:
    easy = math.problems("train", 200, steps=(1, 2))
    assert {len(p.changes) for p in easy} == {1, 2}
    late = {c.kind for p in easy for c in p.changes} & {Kind.PACKS, Kind.AGAIN}
    assert not late
    assert {len(p.changes) for p in math.problems("train", 200)} == {1, 2, 3, 4}
    assert {len(p.changes) for p in math.problems("train", 100, steps=(5, 6))} == {5, 6}
    assert {len(p.changes) for p in math.problems("ood", 50, steps=(8, 8))} == {8}
    with pytest.raises(ValueError, match="test problems have 1 to 4 steps, not 5 to 6"):
        math.problem("test", 0, steps=(5, 6))
    with pytest.raises(ValueError, match="ood problems have 5 to 8 steps, not 8 to 9"):
        math.problem("ood", 0, steps=(8, 9))
    with pytest.raises(ValueError, match="no problems in base 2; known: 10, 8"):
        math.problem("test", 0, base=2)


def test_another_base_is_another_rule_for_the_same_questions() -> None:
    octal = math.problems("test", 300, base=8)
    assert all(p.question.startswith("In base 8: ") for p in octal)
    assert not {p.key for p in octal} & {p.key for p in math.problems("test", 3000)}
    carried = math.MathProblem(
        15, (math.Change(Kind.GAIN, 5, words="buys 5 more"),), "In base 8: ?", told=True, base=8
    )
    assert carried.solution == "buys 5 more: 17+5=24. The answer is 24."
    assert carried.grade("15+5=20. The answer is 20.") == Grade(correct=False, parsed=True)
    forgets = math.solve(carried, {Misconception.DROPS_CARRY})
    assert forgets == "buys 5 more: 17+5=14. The answer is 14."


def test_long_problems_of_the_corpus_are_not_those_of_the_out_of_distribution_split() -> None:
    longer = {p.key for p in math.problems("train", 1000, steps=(5, 6))}
    assert not longer & {p.key for p in math.problems("ood", 1000)}


def test_people_have_misconceptions_in_the_documented_shares() -> None:
    rng = random.Random(0)
    people = [math.solver(rng) for _ in range(20_000)]
    none = sum(not p for p in people) / len(people)
    all_four = sum(len(p) == 4 for p in people) / len(people)
    usual = 1 - math.CAREFUL - math.CARELESS
    assert none == pytest.approx(math.CAREFUL + usual / 16, abs=0.01)
    assert all_four == pytest.approx(math.CARELESS + usual / 16, abs=0.01)
    for m in Misconception:  # the wrong way is the usual way
        assert sum(m in p for p in people) / len(people) == pytest.approx(0.525, abs=0.015)


def example() -> math.MathProblem:
    """17 apples, 25 more, 8 less, 2 bags of 3, the start again: every misconception applies."""
    changes = (
        math.Change(Kind.GAIN, 25, words="buys 25 more"),
        math.Change(Kind.LOSS, 8, words="loses 8"),
        math.Change(Kind.PACKS, 3, 2, "buys 2 bags of 3"),
        math.Change(Kind.AGAIN, words="gets as many as at the start"),
    )
    return math.MathProblem(17, changes, "?", told=True)


@pytest.mark.parametrize(
    ("misconception", "steps", "answer"),
    [
        (None, ["17+25=42", "42-8=34", "2*3=6", "34+6=40", "40+17=57"], 57),
        (Misconception.DROPS_CARRY, ["17+25=32", "32-8=24", "2*3=6", "24+6=20", "20+17=37"], 37),
        (
            Misconception.SMALLER_FROM_LARGER,
            ["17+25=42", "42-8=46", "2*3=6", "46+6=52", "52+17=69"],
            69,
        ),
        (Misconception.ADDS_PACKS, ["17+25=42", "42-8=34", "2+3=5", "34+5=39", "39+17=56"], 56),
        (Misconception.FORGETS_START, ["17+25=42", "42-8=34", "2*3=6", "34+6=40", "40+40=80"], 80),
    ],
)
def test_each_misconception_by_hand(
    misconception: Misconception | None, steps: list[str], answer: int
) -> None:
    text = math.solve(example(), frozenset([misconception] if misconception else []))
    assert math.EQUATION.findall(text) == steps
    assert math.final_answer(text) == answer


def test_step_verifier_counts_right_steps_and_nothing_that_builds_on_a_wrong_one() -> None:
    problem = example()
    wrong = math.solve(problem, frozenset([Misconception.SMALLER_FROM_LARGER]))
    assert problem.grade_steps(wrong) == pytest.approx(2 / 5)  # 17+25=42 and 2*3=6
    assert problem.grade_steps("The answer is 57.") == 0.0
    assert problem.grade_steps("17+25=42. " * 9) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    "text", ["", "57", "The answer is", "The answer is 57", "The answer is 9999999.", "answer: 57."]
)
def test_what_cannot_be_read_is_wrong_and_says_so(text: str) -> None:
    grade = example().grade(text)
    assert not grade.parsed
    assert not grade.correct


def test_the_last_answer_counts() -> None:
    assert example().grade("The answer is 12. The answer is 57.").correct
    assert not example().grade("The answer is 57. The answer is 12.").correct

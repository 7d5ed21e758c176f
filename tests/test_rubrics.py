"""Rubrics: exact checks against a second reading of the text, weak checks, judging examples."""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.tasks import math, prose, records, rubrics, stories
from posttrain.tasks.criteria import EQUATION, Condition, Kind, holds, seems
from posttrain.tasks.draws import seeded
from posttrain.tasks.explanations import explain, person
from posttrain.tasks.math import MathProblem
from posttrain.tasks.problem import Item
from posttrain.tasks.rubrics import Criterion, Importance
from posttrain.tasks.stories import Request

STORIES = [k for k in Kind if list(Kind).index(k) <= list(Kind).index(Kind.STRANGER)]
OBJECTS = {
    Kind.HERO: prose.ANIMALS,
    Kind.ANIMAL: prose.ANIMALS,
    Kind.MOOD: prose.MOODS,
    Kind.CLOSING: prose.MOODS,
    Kind.PLACE: prose.PLACES,
    Kind.THING: prose.THINGS,
    Kind.EVENT: prose.ENDINGS,
    Kind.SENTENCES: tuple("3456789"),
    Kind.EQUATIONS: tuple("12345"),
}


def slow_story(condition: Condition, r: Request, text: str) -> bool:
    """The documented meaning, by counting words in the text of one of our authors."""
    sentences = [s.lower().split() for s in text.removesuffix(".").split(". ")]
    words, value = [w for s in sentences for w in s], condition.value
    animals = [w for w in words if w in prose.ANIMALS]

    def tones(part: list[str]) -> Counter[str]:
        return Counter(m for w in part for m in prose.MOODS if w in prose.PALETTES[m].words)

    match condition.kind:
        case Kind.HERO:
            return animals.count(value) > 0 and animals.count(value) == max(
                Counter(animals).values()
            )
        case Kind.MOOD:
            return tones(words)[value] > tones(words).total() / 2
        case Kind.CLOSING:
            return tones(sentences[-1])[value] > tones(sentences[-1]).total() / 2
        case Kind.PLACE | Kind.ANIMAL | Kind.THING:
            return value in words
        case Kind.EVENT:
            return value in sentences[-1]
        case Kind.SENTENCES:
            return len(sentences) >= int(value)
        case Kind.TWICE:
            return any(sentences.count(s) > 1 for s in sentences)
        case Kind.STRANGER:
            return any(a not in (r.hero, r.friend) for a in animals)
    raise AssertionError(condition)


def slow_explanation(condition: Condition, p: MathProblem, text: str) -> bool:
    equations = re.findall(r"[\d+*-]+=\d+", text)
    stated = re.findall(r"The answer is (\d+)\.", text)
    value = condition.value
    match condition.kind:
        case Kind.RIGHT:
            return stated[-1:] == [p.solution.split()[-1].rstrip(".")]
        case Kind.STATED:
            return len(stated) > 0
        case Kind.FOLLOWS:
            return bool(stated and equations) and equations[-1].split("=")[1] == stated[-1]
        case Kind.QUOTE:
            return value in text
        case Kind.EQUATION:
            return value in equations
        case Kind.EQUATIONS:
            return len(equations) >= int(value)
        case Kind.FALSE:
            return not all(eval(e.replace("=", "==")) for e in equations)
        case Kind.AGAIN:
            return any(equations.count(e) > 1 for e in equations)
    raise AssertionError(condition)


def story_by_someone(i: int) -> tuple[Request, str]:
    request, rng = stories.story("train", i), seeded(i)
    return request, stories.write(request, rng, stories.author(rng))


def explanation_by_someone(i: int) -> tuple[MathProblem, str]:
    problem, rng = math.problem("train", i), seeded(i)
    return problem, explain(problem, rng, *person(rng))


@given(st.integers(0, 10**6))
def test_exact_checks_of_stories_agree_with_counting(i: int) -> None:
    request, text = story_by_someone(i)
    for kind in STORIES:
        for value in OBJECTS.get(kind, ("",)):
            condition = Condition(kind, value)
            assert holds(condition, request, text) == slow_story(condition, request, text)


@given(st.integers(0, 10**6))
def test_exact_checks_of_explanations_agree_with_evaluating(i: int) -> None:
    problem, text = explanation_by_someone(i)
    own = {
        Kind.QUOTE: (*[c.words for c in problem.changes], "loses 8"),
        Kind.EQUATION: (*problem.equations, "1+1=2", "7+5=2"),
    }
    for kind in set(Kind) - set(STORIES):
        for value in (OBJECTS | own).get(kind, ("",)):
            condition = Condition(kind, value)
            assert holds(condition, problem, text) == slow_explanation(condition, problem, text)


def items() -> Iterator[Item]:
    for i in range(300):
        yield stories.story("validation", i)
        yield math.problem("validation", i)


def test_a_good_answer_meets_its_rubric() -> None:
    sizes, importances, compounds = set(), Counter[Importance](), 0
    for item in items():
        rubric = rubrics.rubric(item)
        assert rubric == rubrics.rubric(item)
        assert len({c.text for c in rubric}) == len(rubric)
        sizes.add(len(rubric))
        for criterion in rubric:
            importances[criterion.importance] += 1
            compounds += len(criterion.conditions) == 2
            pitfall = criterion.importance is Importance.PITFALL
            assert rubrics.check(criterion, item, item.solution) is not pitfall
            assert 1 <= len(criterion.conditions) <= 2
    assert sizes == {5, 6, 7}
    assert set(importances) == set(Importance)
    assert compounds / importances.total() > 0.2


def test_a_compound_holds_if_both_its_conditions_do() -> None:
    request = Request("fox", "sad", "cave", "bear", "lamp")
    both = Criterion(
        Importance.IMPORTANT, (Condition(Kind.ANIMAL, "bear"), Condition(Kind.THING, "lamp"))
    )
    assert both.text == "a bear comes and a lamp is there"
    for text, exact, weak in (
        ("A bear came. The lamp was lit.", True, 1.0),
        ("A bear came.", False, 0.5),
        ("Nobody came.", False, 0.0),
    ):
        assert rubrics.check(both, request, text) is exact
        assert rubrics.weak_check(both, request, text) == weak


def test_the_weak_checker_credits_what_the_exact_one_rejects() -> None:
    """And never the other way round on what is wanted; pitfalls it does not see at all."""
    credit = dict.fromkeys(Importance, np.zeros(3))
    for i in range(600):
        for item, text in (story_by_someone(i), explanation_by_someone(i)):
            for c in rubrics.rubric(item):
                exact = rubrics.check(c, item, text)
                weak = rubrics.weak_check(c, item, text)
                credit[c.importance] = credit[c.importance] + [exact, weak, 1]
                if c.importance is Importance.PITFALL:
                    pitfalls = (Kind.TWICE, Kind.STRANGER, Kind.FALSE, Kind.AGAIN)
                    assert weak == 0 or c.conditions[0].kind not in pitfalls
                else:
                    assert weak >= exact, (c, text)
    for importance in (Importance.ESSENTIAL, Importance.IMPORTANT):
        checked, credited, n = credit[importance]
        assert (credited - checked) / n > 0.05


@given(st.text(max_size=200) | st.text("0123456789+-*=. ", max_size=200))
def test_any_text_can_be_checked(text: str) -> None:
    for item in (stories.story("train", len(text)), math.problem("train", len(text))):
        for criterion in rubrics.rubric(item):
            rubrics.check(criterion, item, text)
            rubrics.weak_check(criterion, item, text)


def test_absurdly_long_numbers_are_no_equations() -> None:
    digits = "9" * 10_000
    assert EQUATION.findall(f"1+1={digits} {digits}+1=2") == []
    assert not holds(Condition(Kind.FALSE), math.problem("train", 0), f"1+1={digits}.")


def test_conditions_are_asked_of_their_own_sort() -> None:
    request, problem = stories.story("train", 0), math.problem("train", 0)
    with pytest.raises(ValueError, match=r"'the mood is sad' is about stories .* MathProblem"):
        holds(Condition(Kind.MOOD, "sad"), problem, "")
    with pytest.raises(ValueError, match="is about explanations"):
        seems(Condition(Kind.RIGHT), request, "")
    with pytest.raises(ValueError, match="no rubric for a Record; there are some for Request"):
        rubrics.rubric(records.record("train", 0))


def test_what_a_judge_reads() -> None:
    request = Request("fox", "sad")
    criterion = Criterion(Importance.ESSENTIAL, (Condition(Kind.MOOD, "sad"),))
    prompt = rubrics.judge_prompt(request, criterion, "The fox was sad.\n\nThe end.")
    assert prompt == (
        "Request: Write a sad story about a fox. Text: The fox was sad. The end. "
        "Is it true that the mood is sad?"
    )


def test_judging_examples_are_right_balanced_and_of_all_kinds() -> None:
    n = 4000
    found = [rubrics.judgement("train", i) for i in range(n)]
    assert found[:20] == [rubrics.judgement("train", i) for i in range(20)]
    yes, kinds, compounds = Counter[Kind](), Counter[Kind](), Counter[bool]()
    for example in found:
        conditions = example.criterion.conditions
        truth = True
        for condition in conditions:
            if isinstance(example.item, Request):
                truth &= slow_story(condition, example.item, example.text)
            else:
                assert isinstance(example.item, MathProblem)
                truth &= slow_explanation(condition, example.item, example.text)
        assert truth == example.verdict == (example.answer == "yes")
        assert example.prompt.endswith(f"{example.text} Is it true that {example.criterion.text}?")
        assert "{}" not in example.prompt
        kinds[conditions[0].kind] += 1
        yes[conditions[0].kind] += example.verdict
        if len(conditions) == 2:
            compounds[example.verdict] += 1
    assert set(kinds) == set(Kind)
    assert stats.chisquare(list(kinds.values())).pvalue > 0.001
    for kind in Kind:
        assert stats.binomtest(yes[kind], kinds[kind], 0.5).pvalue > 0.0005
    assert stats.binomtest(compounds[True], compounds.total(), 0.5).pvalue > 0.001
    assert stats.binomtest(compounds.total(), n, rubrics.COMPOUND).pvalue > 0.001


def test_an_interview_begins_with_the_judgement_and_stays_with_its_text() -> None:
    yes = Counter[bool]()
    for i in range(300):
        first, *others = found = rubrics.interview("train", i, 8)
        assert first == rubrics.judgement("train", i)
        assert found == rubrics.interview("train", i, 8)
        assert len({judgement.prompt for judgement in found}) == len(found) <= 8
        for other in others:
            assert (other.item, other.text) == (first.item, first.text)
            assert other.verdict == rubrics.check(other.criterion, other.item, other.text)
            assert all("{}" in condition.kind.value for condition in other.criterion.conditions)
            yes[other.verdict] += 1
    assert yes.total() > 4 * 300
    assert 0.35 < yes[True] / yes.total() < 0.55  # what holds is sometimes not found


def test_judged_items_are_of_the_split() -> None:
    for i in range(40):
        item = rubrics.judgement("test", i).item
        if isinstance(item, Request):
            assert stories.split_of(item) is math.Split.TEST
        else:
            assert isinstance(item, MathProblem)
            assert math.split_of(item) is math.Split.TEST

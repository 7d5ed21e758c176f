"""Rubric RL: aggregation by enumeration, judges against recomputation, and a step on the engine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st

from posttrain.methods import rlvr, sft
from posttrain.methods.rubric_judges import (
    SUBJECTS,
    Case,
    Credit,
    agreement_shares,
    judge_agreement,
    language_judge,
    plainly,
    program_judge,
    settled,
    subject,
)
from posttrain.methods.rubric_rl import (
    Aggregate,
    binary,
    essential_gate,
    exact_of,
    holistic_prompt,
    holistic_reward,
    rubric_reward,
    weighted_sum,
)
from posttrain.rollouts import Rollout
from posttrain.tasks import math
from posttrain.tasks.criteria import Condition, Kind
from posttrain.tasks.problem import Demonstration
from posttrain.tasks.rubrics import (
    Criterion,
    Importance,
    check,
    judge_prompt,
    judgement,
    rubric,
    weak_check,
)
from posttrain.tasks.stories import author, story, write
from posttrain.verdicts import verdicts

MERIT = Condition(Kind.PLACE, "cave")
MUST, GOOD, BAD = (Criterion(importance, (MERIT,)) for importance in Importance)  # in this order
CRITERIA = (MUST, MUST, GOOD, BAD, BAD)


def spelled(credits: Sequence[float]) -> float:
    e1, e2, i, p1, p2 = credits
    return (1.0 * e1 + 1.0 * e2 + 0.7 * i - 0.9 * p1 - 0.9 * p2) / (1.0 + 1.0 + 0.7)


@pytest.mark.parametrize("credits", list(itertools.product([0.0, 0.4, 1.0], repeat=5)))
def test_aggregates_are_their_formulas(credits: tuple[float, ...]) -> None:
    """All 243 texts that can be told apart by five criteria of three credits."""
    assert MUST.importance is Importance.ESSENTIAL
    assert BAD.importance is Importance.PITFALL
    assert weighted_sum(CRITERIA, credits) == pytest.approx(spelled(credits))
    gate = credits[0] * credits[1] * max(spelled(credits), 0.0)
    assert essential_gate(CRITERIA, credits) == pytest.approx(gate)
    rounded = [float(c == 1.0) for c in credits]
    assert binary(weighted_sum)(CRITERIA, credits) == pytest.approx(spelled(rounded))
    if binary(essential_gate)(CRITERIA, credits) > 0:
        assert credits[:2] == (1.0, 1.0)


@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.integers(0, 4),
    st.floats(0, 1),
    st.sampled_from([weighted_sum, essential_gate, binary(weighted_sum), binary(essential_gate)]),
)
def test_merit_never_costs_and_a_pitfall_never_pays(
    credits: list[float], place: int, more: float, aggregate: Aggregate
) -> None:
    raised = [*credits]
    raised[place] += more * (1 - raised[place])
    change = aggregate(CRITERIA, raised) - aggregate(CRITERIA, credits)
    assert (-change if place >= 3 else change) >= -1e-12
    assert aggregate(CRITERIA, credits) <= 1 + 1e-12


def test_a_rubric_of_pitfalls_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="2 criteria needs one that is not a pitfall"):
        weighted_sum((BAD, BAD), (0.0, 1.0))


def test_what_a_judge_does_not_answer_counts_against_the_text() -> None:
    cases = [Case(None, criterion, "") for criterion in (MUST, GOOD, BAD, BAD)]
    assert settled(cases, [None, 0.2, None, 0.3]) == [0.0, 0.2, 1.0, 0.3]


# Rewards of whole batches, on stories and explanations with flaws.


def told(seed: int) -> tuple[list[Any], list[list[str]]]:
    """Two requests and a math problem, with three answers each."""
    rng = random.Random(seed)
    items: list[Any] = [story("train", 1), story("train", 2)]
    texts = [[write(item, rng, author(rng)) for _ in range(2)] + ["A bear."] for item in items]
    problem = math.problem("train", 3)
    items.append(problem)
    texts.append([problem.solution, problem.bare_answer, "I like 3+4=8."])
    return items, texts


def groups_of(texts: Sequence[Sequence[str]]) -> list[list[Rollout]]:
    return [[Rollout([1], [2], [-1.0], text, finished=True) for text in row] for row in texts]


@pytest.mark.parametrize("aggregate", [weighted_sum, essential_gate])
def test_rewards_are_aggregated_per_answer(aggregate: Aggregate) -> None:
    items, texts = told(0)
    reward = rubric_reward(program_judge(weak_check), aggregate, truth=check)
    rewards_P_G, metrics = reward(items, groups_of(texts))
    same = cases = credited = false = 0
    true = 0.0
    for i, (item, row) in enumerate(zip(items, texts, strict=True)):
        for j, text in enumerate(row):
            weak = [weak_check(c, item, text) for c in rubric(item)]
            exact = [check(c, item, text) for c in rubric(item)]
            assert rewards_P_G[i, j].item() == pytest.approx(aggregate(rubric(item), weak))
            true += aggregate(rubric(item), [float(x) for x in exact])
            same += sum((w >= 0.5) == x for w, x in zip(weak, exact, strict=True))
            credited += sum(w >= 0.5 and not x for w, x in zip(weak, exact, strict=True))
            false += sum(not x for x in exact)
            cases += len(exact)
    assert metrics["true_reward"] == pytest.approx(true / 9)
    assert metrics["agreement"] == pytest.approx(same / cases)
    assert metrics["false_credit"] == pytest.approx(credited / false)
    assert metrics["unreadable"] == metrics["scored_tokens"] == 0
    assert 0 < metrics["agreement"] < 1  # the weak check errs here


def test_an_exact_judge_pays_the_true_reward() -> None:
    items, texts = told(1)
    rewards_P_G, metrics = rubric_reward(program_judge(check), truth=check)(items, groups_of(texts))
    assert metrics["true_reward"] == pytest.approx(rewards_P_G.mean().item())
    assert metrics["agreement"] == 1.0
    assert metrics["false_credit"] == 0.0
    assert rewards_P_G[2, 0] > rewards_P_G[2, 2]


def test_a_program_answers_for_some_criteria_and_the_judge_for_the_others() -> None:
    """A judge without answers: what is checked keeps its credit, the rest counts against."""
    items, texts = told(2)
    asked: list[Case] = []

    def silent(cases: Sequence[Case]) -> tuple[list[Credit], int]:
        asked.extend(cases)
        return [None] * len(cases), 7

    reward = rubric_reward(silent, exact=exact_of(Kind.RIGHT, Kind.HERO), truth=check)
    rewards_P_G, metrics = reward(items, groups_of(texts))
    kinds = {condition.kind for case in asked for condition in case.criterion.conditions}
    assert not kinds & {Kind.RIGHT, Kind.HERO}
    assert metrics["unreadable"] == 1.0
    assert metrics["scored_tokens"] == 7
    for i, (item, row) in enumerate(zip(items, texts, strict=True)):
        for j, text in enumerate(row):
            credits = [
                float(check(c, item, text))
                if c.conditions[0].kind in (Kind.RIGHT, Kind.HERO)
                else float(c.importance is Importance.PITFALL)
                for c in rubric(item)
            ]
            assert rewards_P_G[i, j].item() == pytest.approx(weighted_sum(rubric(item), credits))
    facts = [check(case.criterion, case.item, case.text) for case in asked]
    guesses = [case.criterion.importance is Importance.PITFALL for case in asked]
    same = sum(a == b for a, b in zip(facts, guesses, strict=True))
    assert metrics["agreement"] == pytest.approx(same / len(asked))  # of the judge's cases alone


def test_a_compound_is_checked_only_if_all_of_it_can_be() -> None:
    both = Criterion(Importance.ESSENTIAL, (Condition(Kind.HERO, "fox"), MERIT))
    item = story("train", 1)
    assert exact_of(Kind.HERO)(both, item, "A fox.") is None
    assert exact_of(Kind.HERO, Kind.PLACE)(both, item, "A fox in the cave.") == 1.0
    with pytest.raises(ValueError, match="no kind of condition was given"):
        exact_of()


def test_agreement_by_hand() -> None:
    shares = agreement_shares([0.9, 0.2, 0.5, 0.4], [1.0, 0.0, 0.0, 1.0])
    assert shares == {"agreement": 0.5, "false_credit": 0.5, "false_denial": 0.5}
    assert agreement_shares([0.9], [1.0]) == {"agreement": 1.0, "false_denial": 0.0}
    assert agreement_shares([], []) == {}


def test_the_weak_check_against_exact_verdicts() -> None:
    known = [judgement("validation", i) for i in range(60)]
    found = judge_agreement(program_judge(weak_check), known)
    right = [(weak_check(j.criterion, j.item, j.text) >= 0.5) == j.verdict for j in known]
    assert found.agreement.value == pytest.approx(sum(right) / 60)
    assert found.agreement.low < found.agreement.value < found.agreement.high
    credited = [weak_check(j.criterion, j.item, j.text) >= 0.5 for j in known if not j.verdict]
    assert found.false_credit == pytest.approx(sum(credited) / len(credited))
    assert found.cases == 60
    assert found.unreadable == found.scored_tokens == 0
    with pytest.raises(ValueError, match="no judgements were given"):
        judge_agreement(program_judge(check), [])


# A language model as the judge: the shipped base model, taught to say yes or no.


@pytest.fixture(scope="module")
def judge_model(base_service: tinker.ServiceClient) -> tinker.SamplingClient:
    """The shipped one, which was taught to answer yes or no."""
    return base_service.create_sampling_client(base_model="posttrain/judge").result()


def test_a_language_judge_says_what_its_verdicts_say(judge_model: tinker.SamplingClient) -> None:
    known = [judgement("validation", i) for i in range(6)]
    cases = [Case(j.item, j.criterion, j.text) for j in known]
    credits, scored = language_judge(judge_model)(cases)
    prompts = [judge_prompt(j.item, j.criterion, j.text) for j in known]
    found, expected = verdicts(judge_model, prompts, ("yes", "no"))
    assert credits == [v.probability if v.readable else None for v in found]
    assert scored == expected
    assert all(v.readable for v in found)


def test_a_model_that_says_other_things_is_unreadable(policy: tinker.TrainingClient) -> None:
    """The base model has never seen the chat format."""
    fresh = policy.save_weights_and_get_sampling_client().result()
    known = [judgement("validation", i) for i in range(4)]
    found = judge_agreement(language_judge(fresh), known)
    assert found.unreadable == 4
    # The criteria of judgements are no pitfalls, so nothing is credited.
    assert found.agreement.value == sum(not j.verdict for j in known) / 4


def test_a_step_with_a_language_judge(
    policy: tinker.TrainingClient, judge_model: tinker.SamplingClient
) -> None:
    problems = math.problems("train", 2, steps=(1, 1))
    list(sft.train(policy, [Demonstration(p.question, p.solution) for p in problems] * 4,
                   sft.Config(steps=6, batch_size=8)))  # fmt: skip
    reward = rubric_reward(language_judge(judge_model), exact=exact_of(Kind.RIGHT), truth=check)
    cfg = rlvr.Config(prompts=2, group_size=3, max_tokens=32, steps=2)
    for metrics in rlvr.train(policy, problems, cfg, reward=reward):
        assert -1 <= metrics["reward"] <= 1
        assert 0 <= metrics["agreement"] <= 1
        assert 0 <= metrics["unreadable"] <= 1
        assert metrics["scored_tokens"] > 0
        assert "correct" in metrics


def test_a_holistic_verdict_reads_the_whole_rubric(judge_model: tinker.SamplingClient) -> None:
    items, texts = told(3)
    reward = holistic_reward(judge_model)
    rewards_P_G, metrics = reward(items, groups_of(texts))
    prompts = [holistic_prompt(x, t) for x, row in zip(items, texts, strict=True) for t in row]
    found, scored = verdicts(judge_model, prompts, ("yes", "no"))
    expected = [v.probability if v.readable else 0.0 for v in found]
    assert rewards_P_G.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics == {
        "unreadable": sum(not v.readable for v in found) / 9,
        "scored_tokens": scored,
    }
    for criterion in rubric(items[0]):
        pitfall = criterion.importance is Importance.PITFALL
        assert f"{'not that ' * pitfall}{criterion.text}" in prompts[0]


def test_a_judge_is_asked_in_other_words(judge_model: tinker.SamplingClient) -> None:
    """As `plainly` does; the credits are those of the other words."""
    items, texts = told(4)
    cases = [Case(items[0], rubric(items[0])[0], text) for text in texts[0]]
    credits, _ = language_judge(judge_model, plainly)(cases)
    prompts = [plainly(judge_prompt(c.item, c.criterion, c.text)) for c in cases]
    assert all(prompt.endswith('"yes" or "no".') for prompt in prompts)
    found, _ = verdicts(judge_model, prompts, ("yes", "no"))
    assert credits == [v.probability if v.readable else None for v in found]
    rewards_P_G, _ = holistic_reward(judge_model, plainly)(items[:1], groups_of(texts[:1]))
    whole = [plainly(holistic_prompt(items[0], text)) for text in texts[0]]
    found, _ = verdicts(judge_model, whole, ("yes", "no"))
    expected = [v.probability if v.readable else 0.0 for v in found]
    assert rewards_P_G.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_every_kind_has_a_subject_and_a_pitfall_is_met_where_it_is_avoided() -> None:
    assert set(SUBJECTS) == set(Kind)
    items, texts = told(5)
    reward = rubric_reward(program_judge(weak_check), truth=check)
    _, metrics = reward(items, groups_of(texts))
    for name, checker in (("paid", weak_check), ("true", check)):
        found: dict[str, list[float]] = {}
        for item, row in zip(items, texts, strict=True):
            for text, criterion in itertools.product(row, rubric(item)):
                credit = float(checker(criterion, item, text))
                good = 1 - credit if criterion.importance is Importance.PITFALL else credit
                found.setdefault(subject(criterion), []).append(good)
        told_of = {key: value for key, value in metrics.items() if key.startswith(f"{name}/")}
        means = {f"{name}/{key}": sum(v) / len(v) for key, v in found.items()}
        assert told_of == pytest.approx(means)
        assert {f"{name}/mood", f"{name}/hero", f"{name}/answer"} <= told_of.keys()

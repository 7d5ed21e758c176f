import itertools
import math
import re

import pytest

from posttrain.tasks import gym
from posttrain.tasks.draws import Split

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("family", gym.FAMILIES)
def test_every_family_grades_its_own_answer_and_no_other(family: str) -> None:
    items = gym.problems(family, "train", 5)
    assert len({item.key for item in items}) == 5
    for item in items:
        assert item.grade(item.solution).correct
        assert item.grade(f"<answer>x</answer> No: {item.bare_answer}").correct
        for text in ("<answer>surely wrong</answer>", f"{item.bare_answer}<answer>x</answer>"):
            grade = item.grade(text)
            assert (grade.correct, grade.parsed) == (False, True)
        for text in ("", str(item.entry["answer"]), "<answer></answer>", "<answer>"):
            grade = item.grade(text)
            assert (grade.correct, grade.parsed) == (False, False)


def test_answers_are_those_of_an_independent_computation() -> None:
    for item in gym.problems("gcd", "train", 20):
        numbers = map(int, re.findall(r"\d+", item.entry["question"].split(":")[1]))
        assert item.grade(f"<answer>{math.gcd(*numbers)}</answer>").correct
    for item in gym.problems("prime_factorization", "train", 20):
        factors = [int(f) for f in item.entry["answer"].split("×")]
        assert str(math.prod(factors)) in item.question
        assert not item.grade(f"<answer>{math.prod(factors)} × 1</answer>").correct


def test_the_same_seed_gives_the_same_problems() -> None:
    first = gym.problems("leg_counting", "train", 30, seed=3)
    assert [p.key for p in first[:10]] == [
        p.key for p in gym.problems("leg_counting", "train", 10, seed=3)
    ]
    other = gym.problems("leg_counting", "train", 30, seed=4)
    assert not {p.key for p in first} & {p.key for p in other}


def test_no_question_is_in_two_splits() -> None:
    keys = [
        {p.key for seed in (0, 1) for p in gym.problems("gcd", split, 100, seed=seed)}
        for split in SPLITS
    ]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_settings_reach_the_family() -> None:
    for item in gym.problems("chain_sum", Split.TEST, 5, min_terms=7, max_terms=7):
        assert len(re.findall(r"\d+", item.entry["question"])) == 7


def test_long_and_odd_answers_are_wrong() -> None:
    (item,) = gym.problems("prime_factorization", "test", 1)
    for text in ("2 × two", "9" * 9999, "×", "\x00"):
        assert not item.grade(f"<answer>{text}</answer>").correct
    assert not item.grade(f"<answer>{'2' * 10_001}</answer>").parsed


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown family 'countdown'; known: base_conversion, cae"):
        gym.problems("countdown", "train", 1)
    with pytest.raises(ValueError, match="unknown split 'dev'; known: train"):
        gym.problems("gcd", "dev", 1)
    with pytest.raises(ValueError, match="no ood split"):
        gym.problems("gcd", "ood", 1)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        gym.problems("gcd", "train", 0)
    with pytest.raises(ValueError, match=r"gcd cannot be made with \{'max_steps': 2\}"):
        gym.problems("gcd", "train", 1, max_steps=2)
    with pytest.raises(ValueError, match="seed and size are no settings"):
        gym.problems("gcd", "train", 1, size=4)
    with pytest.raises(ValueError, match=r"gcd with .* has only \d+ problems in train, not 500"):
        gym.problems("gcd", "train", 500, min_numbers=2, max_numbers=2, max_value=9)


def test_a_pool_without_anything_in_a_split_is_an_error_and_no_endless_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (only,) = gym.problems("gcd", "train", 1)
    monkeypatch.setattr(gym, "candidates", lambda *_: itertools.repeat(only))
    assert gym.problems("gcd", "train", 1) == [only]
    with pytest.raises(ValueError, match="has only 0 problems in test, not 1"):
        gym.problems("gcd", "test", 1)

"""Advantages by hand, by enumeration of all groups, and their invariances."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.advantages import (
    batch_standardised,
    batch_token_mean,
    centred,
    contrast,
    maxrl,
    rloo,
    seq_mean_token_mean,
    seq_mean_token_sum,
    standardised,
    without_contrast,
)

RULES = [centred, standardised, batch_standardised, rloo, maxrl]
rewards = st.lists(
    st.lists(st.floats(0, 10, width=32), min_size=4, max_size=4), min_size=1, max_size=5
).map(torch.tensor)


def test_by_hand() -> None:
    rewards_P_G = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert centred(rewards_P_G).tolist() == [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]
    assert maxrl(rewards_P_G).tolist() == [[3, -1, -1, -1], [0, 0, 0, 0]]
    first, second = rloo(rewards_P_G).tolist()
    assert first == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])  # less the mean of the others
    first, second = standardised(rewards_P_G).tolist()
    assert first == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], abs=1e-5)
    assert second == [0, 0, 0, 0]
    std = (4 * 3 / 16 / 8) ** 0.5  # of the eight centred rewards
    assert batch_standardised(rewards_P_G)[0].tolist() == pytest.approx(
        [0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std], abs=1e-4
    )
    assert contrast(rewards_P_G).tolist() == [True, False]
    assert without_contrast(rewards_P_G) == 0.5


@pytest.mark.parametrize("rule", RULES)
@given(rewards, st.permutations(range(4)))
def test_they_sum_to_zero_and_order_does_not_matter(
    rule: Callable[[Tensor], Tensor], rewards_P_G: Tensor, order: list[int]
) -> None:
    advantages = rule(rewards_P_G)
    scale = 1 + advantages.abs().amax()
    assert (advantages.sum(1).abs() <= 1e-3 * scale).all()
    torch.testing.assert_close(
        rule(rewards_P_G[:, order]), advantages[:, order], atol=1e-3, rtol=1e-3
    )
    flat = ~contrast(rewards_P_G)
    assert (advantages[flat].abs() <= 1e-3 * scale).all()


@given(rewards, st.floats(-5, 5))
def test_a_bonus_for_all_changes_nothing(rewards_P_G: Tensor, bonus: float) -> None:
    for rule in (centred, rloo):
        torch.testing.assert_close(
            rule(rewards_P_G + bonus), rule(rewards_P_G), atol=1e-4, rtol=1e-4
        )


@given(rewards)
def test_leaving_one_out_is_the_centred_reward_enlarged(rewards_P_G: Tensor) -> None:
    others = (rewards_P_G.sum(1, keepdim=True) - rewards_P_G) / 3
    torch.testing.assert_close(rloo(rewards_P_G), rewards_P_G - others, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rloo(rewards_P_G), centred(rewards_P_G) * 4 / 3)


def expected_gradient(rule: Callable[[Tensor], Tensor], p: float, size: int) -> float:
    """d/dp of what a rule maximises, by enumerating all groups of a policy that succeeds with
    probability p: the mean of A_i dlog prob(outcome_i)/dp."""
    total = 0.0
    for outcomes in itertools.product([0.0, 1.0], repeat=size):
        row = torch.tensor([outcomes], dtype=torch.float64)
        chance = (row * p + (1 - row) * (1 - p)).prod().item()
        score = row / p - (1 - row) / (1 - p)
        total += chance * (rule(row) * score).mean().item()
    return total


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_what_each_rule_maximises(p: float, size: int) -> None:
    """Against the gradients that the papers state: of p, of a part of it, of log p's series."""
    assert expected_gradient(rloo, p, size) == pytest.approx(1)
    assert expected_gradient(centred, p, size) == pytest.approx((size - 1) / size)
    passes = sum((1 - p) ** (k - 1) for k in range(1, size))  # of sum_k pass@k / k
    assert expected_gradient(maxrl, p, size) == pytest.approx(passes)
    if size == 8 and p == 0.9:
        assert expected_gradient(maxrl, p, size) == pytest.approx(1 / p, abs=1e-6)
    # With the standard deviation rare successes and rare failures count alike, and more.
    grpo = expected_gradient(standardised, p, size)
    assert grpo == pytest.approx(expected_gradient(standardised, 1 - p, size))
    if size == 8 and p == 0.05:
        assert grpo > 2 * expected_gradient(centred, 0.05, size)


@pytest.mark.parametrize("rule", RULES)
def test_a_group_of_one_has_no_baseline(rule: Callable[[Tensor], Tensor]) -> None:
    """Its advantages would all be zero, and a run would teach nothing without saying so."""
    with pytest.raises(ValueError, match="group_size must be >= 2"):
        rule(torch.ones(2, 1))


def test_rewards_that_maxrl_refuses() -> None:
    with pytest.raises(ValueError, match="no reward may be negative"):
        maxrl(torch.tensor([[1.0, -0.1]]))


def test_weights_by_hand() -> None:
    lengths_P_G = torch.tensor([[2, 8], [4, 6]])
    assert seq_mean_token_sum(lengths_P_G).tolist() == [[0.25, 0.25], [0.25, 0.25]]
    torch.testing.assert_close(
        seq_mean_token_mean(lengths_P_G), torch.tensor([[1 / 8, 1 / 32], [1 / 16, 1 / 24]])
    )
    assert batch_token_mean(lengths_P_G).tolist() == [[pytest.approx(1 / 20)] * 2] * 2
    # A batch in which all tokens count alike: the weights of all tokens add up to one.
    for rule in (seq_mean_token_mean, batch_token_mean):
        assert (rule(lengths_P_G) * lengths_P_G).sum().item() == pytest.approx(1)

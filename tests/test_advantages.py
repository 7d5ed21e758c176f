import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.advantages import centred, standardised, without_contrast

rewards = st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4), min_size=1, max_size=5
).map(torch.tensor)


def test_by_hand() -> None:
    rewards_P_G = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert centred(rewards_P_G).tolist() == [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]
    first, second = standardised(rewards_P_G).tolist()
    assert first == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], abs=1e-5)
    assert second == [0, 0, 0, 0]
    assert without_contrast(rewards_P_G) == 0.5


@given(rewards, st.floats(-5, 5), st.permutations(range(4)))
def test_a_bonus_for_all_changes_nothing_and_order_does_not_matter(
    rewards_P_G: torch.Tensor, bonus: float, order: list[int]
) -> None:
    torch.testing.assert_close(centred(rewards_P_G).sum(1), torch.zeros(len(rewards_P_G)),
                               atol=1e-4, rtol=0)  # fmt: skip
    torch.testing.assert_close(
        centred(rewards_P_G + bonus), centred(rewards_P_G), atol=1e-4, rtol=0
    )
    for rule in (centred, standardised):
        shuffled = rule(rewards_P_G[:, order])
        torch.testing.assert_close(shuffled, rule(rewards_P_G)[:, order], atol=1e-3, rtol=1e-3)

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.stats import (
    Estimate,
    bootstrap_mean,
    bootstrap_seeds_items,
    holm,
    iqm,
    mean_over_seeds,
    paired_difference,
    paired_difference_bootstrap,
    pass_at_k,
)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_one(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_is_vectorised_and_exact_where_floats_would_not_be() -> None:
    np.testing.assert_array_equal(pass_at_k(16, [0, 1, 16], 1), [0, 1 / 16, 1])
    assert pass_at_k([10, 1000], [1, 1], 2).tolist() == [0.2, 0.002]
    for n, c, k in [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)]:
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(n, c, k)


def test_estimate_text_and_json() -> None:
    estimate = Estimate(0.4121, 0.38, 0.4449)
    assert str(estimate) == "0.412 [0.380, 0.445]"
    assert Estimate.from_json(estimate.to_json()) == estimate


def test_bootstrap_of_a_bernoulli_matches_the_binomial_standard_error() -> None:
    estimate = bootstrap_mean([1.0] * 200 + [0.0] * 300)
    half = 1.96 * (0.4 * 0.6 / 500) ** 0.5
    assert estimate.value == pytest.approx(0.4)
    assert estimate.high - estimate.value == pytest.approx(half, abs=0.003)
    assert estimate.value - estimate.low == pytest.approx(half, abs=0.003)


def test_samples_of_one_item_do_not_count_as_new_evidence() -> None:
    items = np.array([0.0, 1.0] * 50)
    assert bootstrap_mean(np.repeat(items[:, None], 16, axis=1)) == bootstrap_mean(items)


def test_same_seed_same_interval_and_blocks_do_not_matter_for_the_mean() -> None:
    values = np.random.default_rng(0).random(5000)
    assert bootstrap_mean(values, seed=3, draws=900) == bootstrap_mean(values, seed=3, draws=900)
    assert bootstrap_mean(values, draws=900).value == pytest.approx(values.mean())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.randoms())
def test_interval_moves_with_a_shift_and_holds_the_mean(
    values: list[float], random: object
) -> None:
    here, there = (bootstrap_mean(np.array(values) + d, draws=500) for d in (0, 10))
    assert here.low - 1e-9 <= here.high + 1e-9
    assert there.value - here.value == pytest.approx(10)
    assert there.low - here.low == pytest.approx(10)
    assert min(values) - 1e-9 <= here.low <= here.high <= max(values) + 1e-9


def _covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_t_interval_over_five_seeds_covers_where_a_bootstrap_over_them_does_not() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(0.3, 1.0, size=(1000, 5))
    student = np.mean([_covers(mean_over_seeds(s), 0.3) for s in samples])
    plain = np.mean([_covers(bootstrap_mean(s, draws=400), 0.3) for s in samples])
    assert 0.93 < student < 0.97
    assert plain < 0.88


def test_paired_interval_covers_when_seeds_and_items_both_vary() -> None:
    rng = np.random.default_rng(2)
    hits, fixed_items = [], []
    for _ in range(600):
        seeds, items = rng.normal(0, 0.05, (5, 1)), rng.normal(0, 1.0, (1, 60))
        difference = 0.1 + seeds + items + rng.normal(0, 0.5, (5, 60))
        hits.append(_covers(paired_difference(difference, np.zeros((5, 60))), 0.1))
        fixed_items.append(_covers(mean_over_seeds(difference.mean(axis=1)), 0.1))
    assert 0.93 < np.mean(hits) < 0.99
    assert np.mean(fixed_items) < 0.85  # pretending that the items are the whole world


def test_paired_difference_of_known_numbers() -> None:
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    estimate = paired_difference([2, 4, 6], [1, 2, 3])
    assert estimate.value == 2
    assert estimate.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert estimate == mean_over_seeds([1, 2, 3])


def test_pairing_removes_what_both_arms_share() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 10, (5, 100))
    a, b = shared + 0.2 + rng.normal(0, 0.1, shared.shape), shared
    for estimate in (paired_difference(a, b), paired_difference_bootstrap(a, b)):
        assert estimate.high - estimate.low < 0.2
        assert estimate.low < 0.2 < estimate.high


def test_identical_arms_differ_by_exactly_nothing() -> None:
    values = np.random.default_rng(4).random((3, 20))
    assert paired_difference(values, values) == Estimate(0.0, 0.0, 0.0)


def test_seed_and_item_bootstrap_has_both_variances() -> None:
    rng = np.random.default_rng(5)
    items_only = np.broadcast_to(rng.normal(size=(1, 200)), (10, 200))
    width = {}
    for name, matrix in [("items", items_only), ("both", items_only + rng.normal(size=(10, 1)))]:
        estimate = bootstrap_seeds_items(matrix, draws=4000)
        width[name] = estimate.high - estimate.low
    assert width["items"] == pytest.approx(2 * 1.96 * items_only[0].std() / 200**0.5, rel=0.1)
    assert width["both"] > 2 * width["items"]


def test_iqm_ignores_the_tails() -> None:
    assert iqm([-100, 1, 2, 3, 1000]) == 2.0
    assert iqm(np.arange(8)) == 3.5


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="1 of 2 values not finite"):
        bootstrap_mean([1.0, float("nan")])
    with pytest.raises(ValueError, match="bootstrap_mean on per-item values"):
        paired_difference([1.0], [2.0])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])

"""Over-optimisation: planted curves come back, peaks lie where a search finds them, best-of-n
against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import curve_fit

from posttrain.overoptimisation import (
    BEST_OF_N,
    RL,
    Form,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_value,
    fit,
)

KL = np.array([0.0, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0])


def curve(form: Form, a: float, b: float, kl: np.ndarray) -> np.ndarray:
    """The formula, spelled out."""
    d = np.sqrt(kl)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = d * (a - b * (np.log(d) if form is RL else d))
    return np.where(d > 0, gain, 0.0)


@pytest.mark.parametrize(("form", "a", "b"), [(RL, 1.5, 0.7), (BEST_OF_N, 1.2, 0.2)])
def test_planted_coefficients_come_back(form: Form, a: float, b: float) -> None:
    gain = np.repeat(curve(form, a, b, KL)[:, None], 3, axis=1)
    found = fit(form, KL, gain, draws=100)
    for estimate, planted in ((found.a, a), (found.b, b)):
        assert estimate.value == pytest.approx(planted, rel=1e-9)
        assert estimate.low == pytest.approx(planted, rel=1e-9)
        assert estimate.high == pytest.approx(planted, rel=1e-9)
    np.testing.assert_allclose(found.gain(KL), curve(form, a, b, KL), atol=1e-9)
    grid = np.linspace(1e-6, 40, 400_001)
    best = int(np.argmax(curve(form, a, b, grid)))
    assert found.peak.value == pytest.approx(grid[best], abs=2e-3)
    assert found.peak_gain.value == pytest.approx(curve(form, a, b, grid)[best], abs=1e-6)
    assert found.peaked == 1.0
    assert found.furthest == 30.0


@pytest.mark.parametrize("form", [RL, BEST_OF_N])
def test_with_noise_it_is_the_fit_of_scipy(form: Form) -> None:
    """Each unit has KLs of its own here, as runs with several seeds do."""
    rng = np.random.default_rng(0)
    kl = KL[1:, None] * np.exp(0.2 * rng.standard_normal((7, 5)))
    gain = curve(form, 1.2, 0.3, kl) + 0.3 * rng.standard_normal(kl.shape)
    found = fit(form, kl, gain, draws=200)
    (a, b), _ = curve_fit(lambda x, a, b: curve(form, a, b, x), kl.ravel(), gain.ravel())
    assert found.a.value == pytest.approx(a, rel=1e-5)
    assert found.b.value == pytest.approx(b, rel=1e-5)


def test_the_interval_of_the_peak_covers_it_as_often_as_it_says() -> None:
    """200 data sets of 40 noisy units: 95 % of intervals cover; binomial bounds of 4 sigma."""
    rng = np.random.default_rng(1)
    true = (1.2 / (2 * 0.2)) ** 2
    covered = 0
    for i in range(200):
        levels = 1 + 0.3 * rng.standard_normal(40)  # units differ as a whole
        gain = curve(BEST_OF_N, 1.2, 0.2, KL)[:, None] * levels
        gain = gain + rng.standard_normal(gain.shape)
        peak = fit(BEST_OF_N, KL, gain, seed=i, draws=400).peak
        covered += peak.low <= true <= peak.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("form", [RL, BEST_OF_N])
def test_a_gain_that_only_rises_has_no_peak(form: Form) -> None:
    gain = np.repeat((KL**0.9)[:, None], 2, axis=1)
    found = fit(form, KL, gain, draws=50)
    assert found.peak.value == found.peak_gain.value == math.inf
    assert found.peak.high == math.inf
    assert found.peaked == 0.0


def test_a_gain_that_only_falls_peaks_at_the_start() -> None:
    found = fit(BEST_OF_N, KL, np.repeat(-KL[:, None], 2, axis=1), draws=50)
    assert found.peak.value == pytest.approx(0.0, abs=1e-9)
    assert found.peak_gain.value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_best_of_n_kl_of_continuous_rewards_is_an_integral(n: int) -> None:
    """The reward's quantile u has density n u^(n-1) among the best of n, and 1 before."""

    def integrand(u: float) -> float:
        return 0.0 if u == 0 else n * u ** (n - 1) * math.log(n * u ** (n - 1))

    assert best_of_n_kl(n) == pytest.approx(quad(integrand, 0, 1, limit=200)[0], abs=1e-8)


@pytest.mark.parametrize("n", [2, 3])
def test_best_of_n_kl_bounds_the_enumerated_one(n: int) -> None:
    """All n-tuples of M equally likely answers: below the formula, and close for many answers."""
    found = []
    for M in (4, 12, 40):
        counts = np.zeros(M)
        for drawn in itertools.product(range(M), repeat=n):
            counts[max(drawn)] += 1
        p = counts / M**n
        found.append(float((p[p > 0] * np.log(p[p > 0] * M)).sum()))
    assert found == sorted(found)
    assert found[-1] < best_of_n_kl(n)
    assert found[-1] == pytest.approx(best_of_n_kl(n), abs=0.03)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_value_of_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    rng = np.random.default_rng(n)
    proxy = rng.integers(0, 3, (4, 5)).astype(float)  # with ties
    values = rng.standard_normal((4, 5))
    expected = []
    for p, v in zip(proxy, values, strict=True):
        subsets = [list(s) for s in itertools.combinations(range(5), n)]
        best = [[i for i in s if p[i] == max(p[s])] for s in subsets]
        expected.append(np.mean([np.mean(v[i]) for i in best]))
    np.testing.assert_allclose(best_of_n_value(proxy, values, n), expected, rtol=1e-12)


def test_a_large_pool_does_not_overflow() -> None:
    proxy = np.arange(4000.0)[None]
    assert best_of_n_value(proxy, proxy, 4000) == pytest.approx(3999.0)
    # The largest of n out of N numbers is on average n (N + 1)/(n + 1), counted from 1.
    assert best_of_n_value(proxy, proxy + 1, 64) == pytest.approx(64 * 4001 / 65, rel=1e-9)


def test_a_curve_of_best_of_n_is_what_a_fit_takes() -> None:
    rng = np.random.default_rng(3)
    proxy, values = rng.standard_normal((2, 30, 16))
    kl, worth = best_of_n_curve(proxy, values, [1, 2, 4, 8])
    assert kl.tolist() == pytest.approx([best_of_n_kl(n) for n in (1, 2, 4, 8)])
    np.testing.assert_allclose(worth[0], values.mean(1))
    np.testing.assert_allclose(worth[2], best_of_n_value(proxy, values, 4))
    assert fit(BEST_OF_N, kl, worth - worth[0], draws=50).furthest == pytest.approx(best_of_n_kl(8))


def test_bad_input_is_named() -> None:
    good = np.ones((8, 3))
    with pytest.raises(ValueError, match=r"not \(8,\) and \(8,\)"):
        fit(RL, KL, np.ones(8))
    with pytest.raises(ValueError, match=r"not \(8, 3\) and \(7,\)"):
        fit(RL, KL[1:], good)
    with pytest.raises(ValueError, match="KLs finite and not negative"):
        fit(RL, -KL, good)
    with pytest.raises(ValueError, match="two different KLs above 0, and its interval two units"):
        fit(RL, KL, np.ones((8, 1)))
    with pytest.raises(ValueError, match="two different KLs above 0"):
        fit(RL, np.array([0.0, 1.0, 1.0]), np.ones((3, 2)))
    with pytest.raises(ValueError, match="the best of 0 answers"):
        best_of_n_kl(0)
    with pytest.raises(ValueError, match="n=6 needs 1 <= n <= 5"):
        best_of_n_value(np.ones((2, 5)), np.ones((2, 5)), 6)
    with pytest.raises(ValueError, match=r"both must be \(U, N\)"):
        best_of_n_value(np.ones((2, 5)), np.ones((2, 4)), 2)

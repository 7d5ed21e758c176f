"""Reward model over-optimisation: how much of what a learned reward promises is real.

A policy that is optimised against a proxy gains true reward at first and loses it later. Gao,
Schulman & Hilton 2023 (arXiv:2210.10760, section 3.1) measure the distance as d = sqrt(KL(p ||
p_init)), in sqrt nats, and find for the gain of true reward over the initial policy

    R(d) = d (a - b log d)   by reinforcement learning,
    R(d) = d (a - b d)       by best-of-n,

with the peak at d = exp(a/b - 1) and R = b d, or d = a/(2b) and R = a^2/(4b). Both forms are linear
in a and b, so least squares has one solution.

Shapes: C points of a curve, U units that are resampled whole (items, or runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from posttrain.stats import Estimate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """R(d) = d (a - b f(d)), and where it peaks given a > 0 or not, and b > 0."""

    name: str
    f: Callable[[Array], Array]
    peak: Callable[[Array, Array], Array]  # (a, b) with b > 0 to d; 0 where R only falls


RL = Form("d (a - b log d)", np.log, lambda a, b: np.exp(np.minimum(a / b - 1, 150.0)))
BEST_OF_N = Form("d (a - b d)", lambda d: d, lambda a, b: np.maximum(a / (2 * b), 0.0))


@dataclass(frozen=True)
class Fit:
    """A fitted curve; intervals are 95 %, from resampling units."""

    form: Form
    a: Estimate  # units of true reward per sqrt nat
    b: Estimate
    peak: Estimate  # KL in nats at which the true gain is greatest; inf where it only rises
    peak_gain: Estimate  # the fitted gain there; inf likewise
    peaked: float  # share of resamples in which the gain ends up falling, b > 0
    furthest: float  # largest measured KL, nats: a peak beyond it is extrapolated

    def gain(self, kl: ArrayLike) -> Array:
        """Fitted gain of true reward at these KLs in nats; 0 at 0."""
        d = np.sqrt(np.asarray(kl, dtype=np.float64))
        safe = np.where(d > 0, d, 1.0)
        return np.where(d > 0, safe * (self.a.value - self.b.value * self.form.f(safe)), 0.0)


def fit(form: Form, kl: ArrayLike, gain: ArrayLike, *, seed: int = 0, draws: int = 10_000) -> Fit:
    """Least squares over all points and units, with intervals from resampling units.

    Args:
        kl: KL(p || p_init) in nats of each point, (C,); or of each unit there, (C, U).
        gain: (C, U) true reward minus that of the initial policy on the same unit. Points of equal
            KL are fine; the initial policy itself, KL 0, says nothing and may be left in.

    Raises:
        ValueError: shapes do not match; a KL is negative; fewer than two different KLs above 0;
            fewer than two units.
    """
    gain_C_U = np.asarray(gain, dtype=np.float64)
    kl_C_U = np.asarray(kl, dtype=np.float64)
    if gain_C_U.ndim != 2 or kl_C_U.shape not in (gain_C_U.shape, gain_C_U.shape[:1]):
        raise ValueError(
            f"gains are (C, U) and KLs (C,) or (C, U), not {gain_C_U.shape} and {kl_C_U.shape}"
        )
    if not (np.isfinite(gain_C_U).all() and np.isfinite(kl_C_U).all() and (kl_C_U >= 0).all()):
        raise ValueError("gains must be finite, and KLs finite and not negative")
    if kl_C_U.ndim == 1:
        kl_C_U = np.broadcast_to(kl_C_U[:, None], gain_C_U.shape)
    if gain_C_U.shape[1] < 2 or len(np.unique(kl_C_U[kl_C_U > 0])) < 2:
        raise ValueError("a fit needs two different KLs above 0, and its interval two units")
    gram_U, right_U = _normal_equations(form, np.sqrt(kl_C_U), gain_C_U)
    units = len(right_U)
    weights = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
    ab = _solve(gram_U.sum(0)[None], right_U.sum(0)[None])
    resampled = _solve(np.tensordot(weights, gram_U, 1), weights @ right_U)
    peak, peak_gain = _peak(form, ab)
    peaks, peak_gains = _peak(form, resampled)
    return Fit(
        form=form,
        a=_interval(ab[0, 0], resampled[:, 0]),
        b=_interval(ab[0, 1], resampled[:, 1]),
        peak=_interval(peak[0], peaks),
        peak_gain=_interval(peak_gain[0], peak_gains),
        peaked=float((resampled[:, 1] > 0).mean()),
        furthest=float(kl_C_U.max()),
    )


def best_of_n_kl(n: int) -> float:
    """KL(best of n || sampler) = log n - (n - 1)/n, nats per answer (Stiennon et al. 2020,
    arXiv:2009.01325, appendix G.3). Exact where no two answers have the same reward; an upper
    bound where some have (Beirami et al. 2024, arXiv:2401.01879).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"the best of {n} answers is no answer")
    return math.log(n) - (n - 1) / n


def best_of_n_value(proxy: ArrayLike, values: ArrayLike, n: int) -> Array:
    """What the best of n answers by `proxy` is worth on average, from N >= n answers to each unit.

    The unbiased estimator over all subsets of n of the N (Nakano et al. 2021, arXiv:2112.09332,
    appendix I): with values sorted by proxy, sum_i C(i-1, n-1)/C(N, n) values_i. Equal proxies
    share their places, as if one of them were picked at random.

    Args:
        proxy, values: (U, N).

    Returns:
        (U,).

    Raises:
        ValueError: shapes differ, or n is not within 1 and N.
    """
    proxy_U_N, values_U_N = (np.asarray(x, dtype=np.float64) for x in (proxy, values))
    if proxy_U_N.ndim != 2 or proxy_U_N.shape != values_U_N.shape:
        raise ValueError(f"both must be (U, N), not {proxy_U_N.shape} and {values_U_N.shape}")
    size = proxy_U_N.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"the best of n={n} needs 1 <= n <= {size}, the answers to each unit")
    rank = np.arange(1, size + 1)
    chance_N = np.zeros(size)
    chance_N[n - 1 :] = np.exp(_log_choose(rank[n - 1 :] - 1, n - 1) - _log_choose(size, n))
    return np.array(
        [_shared(proxy_N, values_N) @ chance_N
         for proxy_N, values_N in zip(proxy_U_N, values_U_N, strict=True)]
    )  # fmt: skip


def best_of_n_curve(proxy: ArrayLike, values: ArrayLike, ns: Sequence[int]) -> tuple[Array, Array]:
    """(C,) KLs in nats and (C, U) mean values of best-of-n for each n of `ns`: what `fit` takes,
    once the values at n = 1 are subtracted. Arguments and errors as in `best_of_n_value`."""
    found = [best_of_n_value(proxy, values, n) for n in ns]
    return np.array([best_of_n_kl(n) for n in ns]), np.stack(found)


def _normal_equations(form: Form, d_C_U: Array, gain_C_U: Array) -> tuple[Array, Array]:
    """X'X (U, 2, 2) and X'y (U, 2) of each unit, with columns d and -d f(d)."""
    away = d_C_U > 0
    safe = np.where(away, d_C_U, 1.0)
    columns = np.stack([safe, -safe * form.f(safe)]) * away
    return (
        np.einsum("icu,jcu->uij", columns, columns),
        np.einsum("icu,cu->ui", columns, gain_C_U),
    )


def _solve(gram: Array, right: Array) -> Array:
    """(D, 2) solutions; the smallest one where a resample does not determine it."""
    return np.einsum("dij,dj->di", np.linalg.pinv(gram, hermitian=True), right)


def _peak(form: Form, ab: Array) -> tuple[Array, Array]:
    """KL (D,) and gain (D,) at the peak; inf where b <= 0, so that there is none."""
    a, b = ab[:, 0], ab[:, 1]
    falls = b > 0
    safe = np.where(falls, b, 1.0)
    d = form.peak(a, safe)
    f = form.f(np.where(d > 0, d, 1.0))
    return (
        np.where(falls, d**2, np.inf),
        np.where(falls, d * (a - b * f), np.inf),
    )


def _interval(value: float, resampled: Array) -> Estimate:
    """Percentiles that are values themselves, because some may be infinite."""
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return Estimate(float(value), float(low), float(high))


def _log_choose(n: ArrayLike, k: int) -> Array:
    n = np.asarray(n, dtype=np.float64)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _shared(proxy_N: Array, values_N: Array) -> Array:
    """Values in the order of their proxies, each the mean over those with an equal proxy."""
    _, which, counts = np.unique(proxy_N, return_inverse=True, return_counts=True)
    means = np.bincount(which, values_N) / counts
    return means[np.sort(which)]

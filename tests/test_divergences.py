"""Divergences against sums in plain Python, their bounds, and the gradients of their estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.divergences import (
    TAIL,
    Divergence,
    jsd,
    k1,
    k3,
    kl_p_q,
    kl_q_p,
    renormalised,
    with_tail,
)

Probabilities = Sequence[float]

logits = st.lists(st.floats(-4, 4), min_size=5, max_size=5)


def logprobs(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log_softmax(-1)


def plain_kl(a: Probabilities, b: Probabilities) -> float:
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))


def plain_jsd(beta: float, p: Probabilities, q: Probabilities) -> float:
    m = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    return beta * plain_kl(q, m) + (1 - beta) * plain_kl(p, m)


FAMILY: dict[str, tuple[Divergence, Callable[[Probabilities, Probabilities], float]]] = {
    "KL(p||q)": (kl_p_q, plain_kl),
    "KL(q||p)": (kl_q_p, lambda p, q: plain_kl(q, p)),
    "JSD(0.5)": (jsd, partial(plain_jsd, 0.5)),
    "JSD(0.1)": (partial(jsd, beta=0.1), partial(plain_jsd, 0.1)),
    "JSD(0.8)": (partial(jsd, beta=0.8), partial(plain_jsd, 0.8)),
}
# D >= factor TV^2: Pinsker, and for JSD Pinsker in both of its terms.
LEAST = dict.fromkeys(FAMILY, 2.0) | {
    f"JSD({beta})": 2 * beta * (1 - beta) for beta in (0.5, 0.1, 0.8)
}


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=40)
@given(logits, logits)
def test_every_divergence_is_its_formula(name: str, a: list[float], b: list[float]) -> None:
    divergence, formula = FAMILY[name]
    p, q = logprobs(a), logprobs(b)
    expected = formula(p.exp().tolist(), q.exp().tolist())
    assert divergence(p, q).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=40)
@given(logits, logits)
def test_nothing_is_nearer_than_its_bound(name: str, a: list[float], b: list[float]) -> None:
    """Zero between equals, and above a bound in the total variation otherwise."""
    divergence, _ = FAMILY[name]
    p, q = logprobs(a), logprobs(b)
    variation = 0.5 * (p.exp() - q.exp()).abs().sum().item()
    assert divergence(p, p).item() == pytest.approx(0, abs=1e-15)
    assert divergence(p, q).item() >= LEAST[name] * variation**2 - 1e-15
    if name.startswith("JSD"):
        assert divergence(p, q).item() <= math.log(2)


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=40)
@given(logits, logits, st.integers(1, 4))
def test_a_tail_in_one_piece_makes_a_lower_bound(
    name: str, a: list[float], b: list[float], k: int
) -> None:
    """K tokens and the rest, by the formula; zero between equals; never above the whole."""
    divergence, formula = FAMILY[name]
    p, q = logprobs(a), logprobs(b)
    kept_p, kept_q = p[:k].exp().tolist(), q[:k].exp().tolist()
    expected = formula([*kept_p, 1 - sum(kept_p)], [*kept_q, 1 - sum(kept_q)])
    assume(min(1 - sum(kept_p), 1 - sum(kept_q)) > TAIL)
    found = divergence(with_tail(p[:k]), with_tail(q[:k])).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found <= divergence(p, q).item() + 1e-9
    assert found >= -1e-12
    assert divergence(with_tail(p[:k]), with_tail(p[:k])).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=40)
@given(logits, logits, st.integers(1, 5))
def test_renormalised_is_the_formula_given_one_of_k(
    name: str, a: list[float], b: list[float], k: int
) -> None:
    divergence, formula = FAMILY[name]
    p, q = logprobs(a), logprobs(b)
    given_p, given_q = ((x[:k].exp() / x[:k].exp().sum()).tolist() for x in (p, q))
    found = divergence(renormalised(p[:k]), renormalised(q[:k])).item()
    assert found == pytest.approx(formula(given_p, given_q), rel=1e-9, abs=1e-12)


@settings(max_examples=20)
@given(logits, logits)
def test_the_whole_vocabulary_has_no_tail(a: list[float], b: list[float]) -> None:
    """With all tokens listed, value and gradient are those of the full divergence."""
    q = logprobs(b)
    for divergence, _ in FAMILY.values():
        gradients, values = [], []
        for cut in (lambda x: x, with_tail):
            leaf = torch.tensor(a, dtype=torch.float64, requires_grad=True)
            value = divergence(cut(leaf.log_softmax(-1)), cut(q))
            (gradient,) = torch.autograd.grad(value, leaf)
            gradients.append(gradient)
            values.append(value.item())
        assert values[0] == pytest.approx(values[1], abs=1e-5)
        assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


def test_in_float32_a_listed_vocabulary_gives_finite_gradients() -> None:
    """The sum of all probabilities is then 1 give or take a rounding, above or below."""
    generator = torch.Generator().manual_seed(0)
    leaf = (3 * torch.randn(200, 260, generator=generator)).requires_grad_()
    q = (3 * torch.randn(200, 260, generator=generator)).log_softmax(-1)
    for divergence in (kl_p_q, kl_q_p, jsd):
        exact = torch.autograd.grad(divergence(leaf.log_softmax(-1), q).sum(), leaf)[0]
        cut = divergence(with_tail(leaf.log_softmax(-1)), with_tail(q)).sum()
        (found,) = torch.autograd.grad(cut, leaf)
        assert torch.allclose(found, exact, atol=2e-5)


@given(logits, logits)
def test_jsd_divided_by_beta_ends_in_the_two_directions(a: list[float], b: list[float]) -> None:
    p, q = logprobs(a), logprobs(b)
    near_0, near_1 = jsd(p, q, beta=1e-6) / 1e-6, jsd(p, q, beta=1 - 1e-6) / 1e-6
    assert near_0.item() == pytest.approx(kl_q_p(p, q).item(), rel=1e-3, abs=1e-8)
    assert near_1.item() == pytest.approx(kl_p_q(p, q).item(), rel=1e-3, abs=1e-8)


@given(logits, logits, st.floats(0.01, 0.99))
def test_jsd_is_the_same_from_the_other_side(a: list[float], b: list[float], beta: float) -> None:
    p, q = logprobs(a), logprobs(b)
    assert jsd(p, q, beta).item() == pytest.approx(jsd(q, p, 1 - beta).item(), abs=1e-12)


@pytest.mark.parametrize("beta", [-0.1, 0.0, 1.0, 1.1])
def test_jsd_without_a_mixture_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be between 0 and 1"):
        jsd(logprobs([0.0, 1.0]), logprobs([1.0, 0.0]), beta)


def test_what_has_no_probability_counts_nothing() -> None:
    impossible = torch.tensor([0.0, -torch.inf])
    even = torch.tensor([0.5, 0.5]).log()
    assert kl_p_q(impossible, even).item() == pytest.approx(math.log(2))
    assert kl_p_q(even, impossible).item() == math.inf
    assert kl_q_p(even, impossible).item() == pytest.approx(math.log(2))
    expected = 0.5 * math.log(1 / 0.75) + 0.25 * (math.log(0.5 / 0.75) + math.log(0.5 / 0.25))
    assert jsd(even, impossible).item() == pytest.approx(expected)


def test_leading_axes_are_kept() -> None:
    p = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    q = p.roll(1, -1)
    for divergence in (kl_p_q, kl_q_p, jsd):
        found = divergence(with_tail(p[..., :4]), with_tail(q[..., :4]))
        assert found.shape == (2, 3)
        assert found[1, 2] == pytest.approx(
            divergence(with_tail(p[1, 2, :4]), with_tail(q[1, 2, :4])).item()
        )


# Estimators from single samples of p: their exact mean over all outcomes.


@given(logits, logits)
def test_both_estimators_have_the_mean_kl_p_q(a: list[float], b: list[float]) -> None:
    p, q = logprobs(a), logprobs(b)
    for estimator in (k1, k3):
        mean = (p.exp() * estimator(p, q)).sum().item()
        assert mean == pytest.approx(kl_p_q(p, q).item(), rel=1e-9, abs=1e-12)
    assert (k3(p, q) >= 0).all()


@given(logits)
def test_k3_is_zero_only_where_the_probabilities_are_equal(a: list[float]) -> None:
    p = logprobs(a)
    assert (k3(p, p) == 0).all()
    assert (k3(p, p + 0.1) > 0.004).all()
    assert (k3(p, p - 0.1) > 0.004).all()


def test_k3_varies_less_where_the_two_are_close() -> None:
    p = logprobs([0.3, -0.2, 0.5, 1.0, -1.0])
    q = logprobs([0.35, -0.25, 0.45, 1.05, -0.9])

    def variance(values: Tensor) -> float:
        mean = (p.exp() * values).sum()
        return (p.exp() * (values - mean).square()).sum().item()

    assert variance(k3(p, q)) < 0.05 * variance(k1(p, q))


@settings(max_examples=20)
@given(logits, logits)
def test_what_the_estimators_are_the_gradients_of(a: list[float], b: list[float]) -> None:
    """Exact means over outcomes drawn from p, held fixed while the estimate is differentiated."""
    leaf = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    q = logprobs(b)

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, leaf)[0]

    p = leaf.log_softmax(-1)
    drawn = p.detach().exp()
    as_loss = {estimator: slope((drawn * estimator(leaf.log_softmax(-1), q)).sum())
               for estimator in (k1, k3)}  # fmt: skip
    as_advantage = slope((drawn * k1(p.detach(), q) * leaf.log_softmax(-1)).sum())
    assert torch.allclose(as_loss[k1], torch.zeros_like(leaf), atol=1e-12)
    assert torch.allclose(as_loss[k3], slope(kl_q_p(leaf.log_softmax(-1), q)), atol=1e-10)
    assert torch.allclose(as_advantage, slope(kl_p_q(leaf.log_softmax(-1), q)), atol=1e-10)

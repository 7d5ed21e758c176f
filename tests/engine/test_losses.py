"""Every loss against its formula written out in float64, and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from posttrain.engine.losses import LOSSES


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def sequence_ratio(lp: np.ndarray, q: np.ndarray, mask: np.ndarray) -> float:
    return math.exp(float(((lp - q) * mask).sum() / max(mask.sum(), 1.0)))


FORMULAS: dict[str, Callable[[float, float, float, float, dict[str, float]], float]] = {
    "cross_entropy": lambda lp, q, a, s, c: -lp,
    "importance_sampling": lambda lp, q, a, s, c: -math.exp(lp - q) * a,
    "ppo": lambda lp, q, a, s, c: (
        -min(
            math.exp(lp - q) * a,
            clip(math.exp(lp - q), c["clip_low_threshold"], c["clip_high_threshold"]) * a,
        )
    ),
    "cispo": lambda lp, q, a, s, c: (
        -clip(math.exp(lp - q), c["clip_low_threshold"], c["clip_high_threshold"]) * lp * a
    ),
    "dro": lambda lp, q, a, s, c: -(lp * a - 0.5 * c["beta"] * (lp - q) ** 2),
    "gspo": lambda lp, q, a, s, c: (
        -min(s * a, clip(s, c["clip_low_threshold"], c["clip_high_threshold"]) * a)
    ),
}
# The derivative by lp, where it is not that of the value: a stopped gradient is inside.
SLOPES: dict[str, Callable[[float, float, float, float, dict[str, float]], float]] = {
    "cispo": lambda lp, q, a, s, c: (
        -clip(math.exp(lp - q), c["clip_low_threshold"], c["clip_high_threshold"]) * a
    ),
    "gspo": lambda lp, q, a, s, c: (
        -s * a if s * a <= clip(s, c["clip_low_threshold"], c["clip_high_threshold"]) * a else 0.0
    ),
}


def case(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, float]]:
    """Two sequences of five tokens, with ratios inside and outside the clipping range."""
    rng = np.random.default_rng(3)
    lp = torch.tensor(-rng.uniform(0.1, 3.0, (2, 5, 1)), requires_grad=True)
    inputs = {
        "logprobs": lp.detach() + torch.tensor(rng.normal(0, 0.4, (2, 5, 1))),
        "advantages": torch.tensor(rng.normal(0, 1, (2, 5, 1))),
        "sequence_ratio_mask": torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).double()[..., None],
    }
    settings = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2, "beta": 0.05}
    return lp, inputs, {key: settings[key] for key in LOSSES[name].settings}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name: str) -> None:
    lp, inputs, settings = case(name)
    losses = LOSSES[name].function(lp, inputs, settings)
    (gradient,) = torch.autograd.grad(losses.sum(), lp)
    values = lp.detach().numpy()
    masks = inputs["sequence_ratio_mask"].numpy()
    for row, column in np.ndindex(2, 5):
        s = sequence_ratio(values[row], inputs["logprobs"][row].numpy(), masks[row])
        q, a = (float(inputs[key][row, column, 0]) for key in ("logprobs", "advantages"))
        x, formula = float(values[row, column, 0]), FORMULAS[name]
        assert float(losses[row, column, 0].detach()) == pytest.approx(
            formula(x, q, a, s, settings)
        )
        step = 1e-6
        slope = (
            SLOPES[name](x, q, a, s, settings)
            if name in SLOPES
            else (formula(x + step, q, a, s, settings) - formula(x - step, q, a, s, settings))
            / (2 * step)
        )
        assert float(gradient[row, column, 0]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].silent])
def test_a_zero_in_the_silent_input_gives_no_gradient(name: str) -> None:
    lp, inputs, settings = case(name)
    inputs[LOSSES[name].silent or ""][:, 2] = 0.0
    (gradient,) = torch.autograd.grad(LOSSES[name].function(lp, inputs, settings).sum(), lp)
    assert not gradient[:, 2].any()


def test_policy_gradient_on_policy_is_reinforce() -> None:
    """At ratio 1, importance sampling, PPO and CISPO all have the gradient -A."""
    lp, inputs, _ = case("ppo")
    inputs["logprobs"] = lp.detach()
    for name in ("importance_sampling", "ppo", "cispo"):
        settings = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
        loss = LOSSES[name].function(lp, inputs, settings).sum()
        (gradient,) = torch.autograd.grad(loss, lp)
        torch.testing.assert_close(gradient, -inputs["advantages"])

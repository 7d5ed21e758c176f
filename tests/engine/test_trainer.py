"""The trainer: gradients against plain autograd, batching, the optimizer, refusals, resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.engine import head as head_module
from posttrain.engine import trainer as trainer_module
from posttrain.engine.datum import Datum
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.trainer import AdamParams, Trainer
from tests.conftest import TINY


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> Decoder:
    decoder = Decoder.load(tiny_model_dir)
    for name, parameter in decoder.named_parameters():
        if "embed" in name:
            parameter.mul_(0.2)  # softer predictions: float32 noise is then small beside gradients
    return decoder


def fresh(base: Decoder, **changes: Any) -> Trainer:
    trainer = Trainer(base, LoraConfig(**{"rank": 4, "seed": 1, **changes}))
    generator = torch.Generator().manual_seed(2)
    for _, b in trainer.adapter.factors.values():
        b.data.normal_(std=0.05, generator=generator)
    return trainer


def example(length: int, seed: int) -> Datum:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TINY.vocab_size, length + 1)
    weights = rng.uniform(0, 1, length).astype(np.float32) * (rng.random(length) < 0.6)
    return Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights})


def policy_example(length: int, seed: int) -> Datum:
    rng = np.random.default_rng(seed)
    found = example(length, seed)
    del found.inputs["weights"]
    found.inputs["logprobs"] = -rng.uniform(4, 7, length).astype(np.float32)
    found.inputs["advantages"] = rng.normal(0, 1, length).astype(np.float32)
    found.inputs["advantages"][: length // 2] = 0
    return found


def plain_gradients(trainer: Trainer, data: list[Datum]) -> tuple[float, list[torch.Tensor]]:
    """Weighted cross-entropy one datum at a time, without padding or chunks."""
    total = torch.zeros(())
    for one in data:
        hidden = trainer.base(torch.from_numpy(one.tokens)[None], adapter=trainer.adapter)
        logprobs = trainer.base.logits(hidden, trainer.adapter).log_softmax(-1)[0]
        chosen = logprobs.gather(-1, torch.from_numpy(one.inputs["target_tokens"])[:, None])[:, 0]
        total = total - (chosen * torch.from_numpy(one.inputs["weights"])).sum()
    return float(total.detach()), list(torch.autograd.grad(total, trainer.adapter.parameters()))


def assert_same(one: list[torch.Tensor] | None, two: list[torch.Tensor] | None) -> None:
    assert one is not None
    assert two is not None
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_gradients_are_those_of_plain_autograd(base: Decoder) -> None:
    trainer, data = fresh(base), [example(n, n) for n in (3, 17, 8, 1)]
    expected_loss, expected = plain_gradients(trainer, data)
    output = trainer.forward_backward(data, "cross_entropy", {})
    assert output.metrics["loss:sum"] == pytest.approx(expected_loss, rel=1e-5)
    assert_same(trainer.gradients, expected)


def test_logprobs_are_returned_for_every_position(base: Decoder) -> None:
    trainer, data = fresh(base), [example(9, 0), example(4, 1)]
    data[0].inputs["weights"][:] = 0
    output = trainer.forward_backward(data, "cross_entropy", {})
    for one, found in zip(data, output.logprobs, strict=True):
        hidden = base(torch.from_numpy(one.tokens)[None], adapter=trainer.adapter)
        logprobs = base.logits(hidden, trainer.adapter).log_softmax(-1)[0].detach().numpy()
        np.testing.assert_allclose(
            found, logprobs[np.arange(len(found)), one.inputs["target_tokens"]], atol=1e-4
        )


@given(order=st.permutations(range(6)), tokens=st.sampled_from([1, 20, 40, 4096]))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("name", ["cross_entropy", "ppo", "gspo", "dro"])
def test_neither_order_nor_split_matters(
    base: Decoder, name: str, order: list[int], tokens: int
) -> None:
    make = example if name == "cross_entropy" else policy_example
    data = [make(n, n) for n in (3, 17, 8, 5, 12, 1)]
    if name == "gspo":
        for one in data:
            one.inputs["sequence_ratio_mask"] = np.ones(len(one.tokens), np.float32)
    config = {"beta": 0.1} if name == "dro" else {}
    whole, parts = fresh(base), fresh(base)
    expected = whole.forward_backward(data, name, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "TOKENS", tokens)
        patch.setattr(head_module, "CELLS", 3 * TINY.vocab_size)  # three positions at a time
        found = parts.forward_backward([data[i] for i in order], name, config)
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-4)
    for place, index in enumerate(order):
        np.testing.assert_allclose(found.logprobs[place], expected.logprobs[index], atol=1e-4)
    assert_same(parts.gradients, whole.gradients)


def test_gradients_accumulate_until_a_step(base: Decoder) -> None:
    data = [example(n, n) for n in (6, 11)]
    whole, parts = fresh(base), fresh(base)
    whole.forward_backward(data, "cross_entropy", {})
    for one in data:
        parts.forward_backward([one], "cross_entropy", {})
    assert_same(parts.gradients, whole.gradients)
    parts.optim_step(AdamParams())
    assert parts.gradients is None


def test_forward_alone_leaves_no_gradient(base: Decoder) -> None:
    trainer = fresh(base)
    output = trainer.forward_backward([example(5, 0)], "cross_entropy", {}, backward=False)
    assert trainer.gradients is None
    assert output.logprobs[0].shape == (5,)


def test_soft_targets_are_weighted_sums(base: Decoder) -> None:
    """(N, K) with the weights of a distribution equals K weighted runs with one target each."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 260, 7), rng.integers(0, 260, (7, 3))
    weights = rng.dirichlet(np.ones(3), 7).astype(np.float32)
    soft, hard = fresh(base), fresh(base)
    output = soft.forward_backward(
        [Datum(tokens, {"target_tokens": targets, "weights": weights}), example(4, 1)],
        "cross_entropy",
        {},
    )
    columns = [
        Datum(tokens, {"target_tokens": targets[:, k], "weights": weights[:, k]}) for k in range(3)
    ]
    expected = hard.forward_backward([*columns, example(4, 1)], "cross_entropy", {})
    assert output.logprobs[0].shape == (7, 3)
    assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    assert_same(soft.gradients, hard.gradients)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_steps_are_those_of_torch_adamw(base: Decoder, clip: float) -> None:
    trainer = fresh(base)
    copies = [p.detach().clone().requires_grad_() for p in trainer.adapter.parameters()]
    reference = torch.optim.AdamW(
        copies, lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, foreach=False
    )
    for step in range(3):
        trainer.forward_backward([example(9, step)], "cross_entropy", {})
        assert trainer.gradients is not None
        for copy, gradient in zip(copies, trainer.gradients, strict=True):
            copy.grad = gradient.clone()
        norm = float(torch.nn.utils.clip_grad_norm_(copies, clip or 1e9))
        reference.step()
        metrics = trainer.optim_step(AdamParams(1e-2, 0.8, 0.9, 1e-6, 0.1, clip))
        assert metrics["grad_norm:mean"] == pytest.approx(norm, rel=1e-5)
    for factor, copy in zip(trainer.adapter.parameters(), copies, strict=True):
        torch.testing.assert_close(factor, copy, atol=1e-6, rtol=1e-5)


def test_a_step_without_gradients_moves_nothing(base: Decoder) -> None:
    trainer = fresh(base)
    before = {name: value.clone() for name, value in trainer.adapter.state().items()}
    assert trainer.optim_step(AdamParams()) == {"grad_norm:mean": 0.0}
    assert all(torch.equal(before[n], value) for n, value in trainer.adapter.state().items())


def test_it_learns(base: Decoder) -> None:
    trainer, data = fresh(base), [example(12, 0)]
    losses = []
    for _ in range(30):
        losses.append(trainer.forward_backward(data, "cross_entropy", {}).metrics["loss:sum"])
        trainer.optim_step(AdamParams(learning_rate=1e-2))
    assert losses[-1] < 0.3 * losses[0]


def test_resuming_gives_the_same_bits(base: Decoder) -> None:
    def steps(trainer: Trainer, numbers: range) -> None:
        for number in numbers:
            trainer.forward_backward([example(9, number)], "cross_entropy", {})
            trainer.optim_step(AdamParams(learning_rate=1e-2))

    straight, first, second = fresh(base), fresh(base), fresh(base, seed=9)
    steps(straight, range(6))
    steps(first, range(3))
    saved = {name: value.clone() for name, value in first.adapter.state().items()}
    second.load(saved, first.optimizer_state())
    steps(second, range(3, 6))
    expected, found = straight.adapter.state(), second.adapter.state()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def broken(change: Callable[[Datum], None], name: str = "cross_entropy") -> Datum:
    one = example(6, 0) if name == "cross_entropy" else policy_example(6, 0)
    change(one)
    return one


def put(key: str, value: Any) -> Callable[[Datum], None]:
    return lambda one: one.inputs.__setitem__(key, np.asarray(value))


REFUSED = [
    ("cross_entropy", put("weights", np.ones(5, np.float32)), "weights has shape"),
    ("cross_entropy", put("target_tokens", np.arange(5)), "target_tokens has length 5"),
    ("cross_entropy", put("weights", [1, 1, np.nan, 1, 1, 1]), "NaN or infinity"),
    ("cross_entropy", put("weights", [1, 1, np.inf, 1, 1, 1]), "NaN or infinity"),
    ("cross_entropy", put("mask", np.ones(6)), "takes no input 'mask'"),
    ("cross_entropy", put("target_tokens", [1, 2, 3, 4, 5, 260]), "outside the vocabulary"),
    ("cross_entropy", put("target_tokens", [1, 2, 3, 4, 5, -1]), "outside the vocabulary"),
    ("cross_entropy", put("target_tokens", np.ones(6, np.float32)), "must be integers"),
    ("cross_entropy", lambda one: setattr(one, "tokens", one.tokens + 260), "outside the voc"),
    ("cross_entropy", lambda one: setattr(one, "tokens", np.zeros(0, int)), "is empty"),
    ("cross_entropy", lambda one: setattr(one, "tokens", np.zeros(129, int)), "context is 128"),
    ("ppo", lambda one: one.inputs.pop("advantages"), "needs the input 'advantages'"),
    ("ppo", put("target_tokens", np.ones((6, 2), int)), "2 dimensions"),
    ("ppo", put("logprobs", np.full(6, -1e4, np.float32)), "the loss is"),
]


@pytest.mark.parametrize(("name", "change", "complaint"), REFUSED)
def test_a_bad_datum_is_refused_by_its_index_and_nothing_is_applied(
    base: Decoder, name: str, change: Callable[[Datum], None], complaint: str
) -> None:
    trainer = fresh(base)
    good = example(30, 1) if name == "cross_entropy" else policy_example(30, 1)
    with pytest.raises(UserError, match=f"^datum 1: .*{complaint}"):
        trainer.forward_backward([good, broken(change, name)], name, {})
    assert trainer.gradients is None
    trainer.forward_backward([good], name, {})
    assert trainer.gradients is not None


def test_unknown_losses_and_settings_are_refused(base: Decoder) -> None:
    trainer, data = fresh(base), [example(4, 0)]
    with pytest.raises(UserError, match="unknown loss 'hinge'; known: cross_entropy"):
        trainer.forward_backward(data, "hinge", {})
    with pytest.raises(UserError, match="no setting 'clip'; known: clip_low_threshold"):
        trainer.forward_backward(data, "ppo", {"clip": 1.0})
    with pytest.raises(UserError, match="needs a finite number for the setting 'beta'"):
        trainer.forward_backward(data, "dro", {})
    with pytest.raises(UserError, match="no data"):
        trainer.forward_backward([], "cross_entropy", {})


def test_rank_and_optimizer_parameters_are_checked(base: Decoder) -> None:
    with pytest.raises(UserError, match="rank 33 is not between 1 and this model's 32"):
        Trainer(base, LoraConfig(rank=33))
    with pytest.raises(UserError, match="finite and not negative"):
        AdamParams(learning_rate=float("nan"))
    with pytest.raises(UserError, match="below 1"):
        AdamParams(beta2=1.0)

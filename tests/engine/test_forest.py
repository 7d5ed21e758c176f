"""Shared beginnings: which are found, and that computing them once changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.engine import trainer as trainer_module
from posttrain.engine.datum import Datum
from posttrain.engine.forest import Forest, Group, agree, share
from posttrain.engine.lora import LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.passes import passes
from posttrain.engine.trainer import Trainer
from tests.conftest import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> Decoder:
    decoder = Decoder.load(tiny_model_dir)
    decoder.model.norm.weight.mul_(0.15)  # softer predictions
    return decoder


def fresh(base: Decoder) -> Trainer:
    trainer = Trainer(base, LoraConfig(rank=4, seed=1))
    generator = torch.Generator().manual_seed(2)
    for _, b in trainer.adapter.factors.values():
        b.data.normal_(std=0.05, generator=generator)
    return trainer


def policy_data(
    prompts: list[int], members: int, rng: np.random.Generator, *, spread: int = 9
) -> list[Datum]:
    """Groups of completions of different lengths to prompts of the given lengths."""
    data = []
    for length in prompts:
        prompt = rng.integers(0, 260, length)
        for _ in range(members):
            whole = np.concatenate((prompt, rng.integers(0, 260, 3 + rng.integers(spread))))
            sampled = np.arange(1, len(whole)) >= length
            inputs: dict[str, np.ndarray] = {
                "target_tokens": whole[1:],
                "logprobs": np.where(sampled, -5.5, 0.0).astype(np.float32),
                "advantages": np.where(sampled, rng.normal(), 0.0).astype(np.float32),
            }
            data.append(Datum(whole[:-1], inputs))
    return data


def relative(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    flat = [torch.cat([g.flatten() for g in gradients]).double() for gradients in (one, two)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def run(trainer: Trainer, data: list[Datum]) -> tuple[float, list[np.ndarray], list[torch.Tensor]]:
    output = trainer.forward_backward(data, "importance_sampling", {})
    assert trainer.gradients is not None
    return output.metrics["loss:sum"], output.logprobs, trainer.gradients


@pytest.mark.parametrize("seed", range(4))
def test_sharing_gives_the_loss_logprobs_and_gradients_of_single_sequences(
    base: Decoder, seed: int
) -> None:
    """Each datum alone in a pass is the reference: nothing is shared, split or padded there."""
    rng = np.random.default_rng(seed)
    data = policy_data([20, 9, 33, 1], 5, rng)
    data += policy_data([40], 1, rng) + data[:2]  # a loner, and exact repetitions
    order = rng.permutation(len(data))
    loss, logprobs, gradients = run(fresh(base), [data[i] for i in order])
    single = fresh(base)
    total, references = 0.0, []
    for datum in data:
        output = single.forward_backward([datum], "importance_sampling", {})
        total += output.metrics["loss:sum"]
        references.append(output.logprobs[0])
    assert loss == pytest.approx(total, rel=1e-5)
    for place, index in enumerate(order):
        np.testing.assert_allclose(logprobs[place], references[index], rtol=1e-5, atol=1e-5)
    assert single.gradients is not None
    assert relative(gradients, single.gradients) < 1e-5


def test_a_group_too_large_for_a_pass_is_divided(
    base: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = policy_data([30], 12, np.random.default_rng(0))
    whole = run(fresh(base), data)
    monkeypatch.setattr(trainer_module, "TOKENS", 48)
    sizes = [len(found.forest.tokens) for found in passes(data, 48, 2**20, CPU)]
    assert len(sizes) > 3
    assert max(sizes) <= 48
    parts = run(fresh(base), data)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert relative(parts[2], whole[2]) < 1e-5


def test_targets_and_weights_may_differ_where_tokens_are_shared(base: Decoder) -> None:
    """A shared position stands for as many targets as its sequences give it."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 260, 20)
    data = [
        Datum(
            tokens,
            {
                "target_tokens": rng.integers(0, 260, 20),
                "weights": rng.normal(size=20).astype(np.float32),
            },
        )
        for _ in range(4)
    ]
    together, apart = fresh(base), fresh(base)
    output = together.forward_backward(data, "cross_entropy", {})
    parts = [apart.forward_backward([datum], "cross_entropy", {}) for datum in data]
    (found,) = passes(data, 2048, 2**20, CPU)
    assert len(found.forest.tokens) == 20
    assert output.metrics["loss:sum"] == pytest.approx(
        sum(part.metrics["loss:sum"] for part in parts), rel=1e-5
    )
    assert together.gradients is not None
    assert apart.gradients is not None
    assert relative(together.gradients, apart.gradients) < 1e-5


def test_shared_positions_are_computed_once() -> None:
    data = policy_data([64] * 4, 8, np.random.default_rng(0), spread=1)
    (found,) = passes(data, 4096, 2**20, CPU)
    assert len(found.forest.tokens) == 4 * 64 + 32 * 2
    assert found.forest.fan == 8


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12))
def test_every_sequence_is_found_again_in_the_forest(raw: list[list[int]]) -> None:
    sequences = [np.array(tokens) for tokens in raw]
    groups = share(sequences)
    members = [member for group in groups for member in group.members]
    assert sorted(members) == list(range(len(sequences)))
    for group in groups:
        first = sequences[group.members[0]]
        for member in group.members:
            assert agree(first, sequences[member], group.shared) == group.shared
    forest = Forest.plant(sequences, groups, CPU)
    for place, member in zip(forest.places, members, strict=True):
        np.testing.assert_array_equal(forest.tokens.numpy()[place], sequences[member])
        np.testing.assert_array_equal(forest.positions.numpy()[place], range(len(place)))
    assert len(forest.tokens) <= sum(map(len, sequences))


def test_groups_of_prompts_are_found_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 9, 12) for _ in range(3)]
    sequences = [np.concatenate((prompts[i % 3], [10 + i])) for i in range(9)]
    assert sorted(share(sequences), key=lambda g: min(g.members)) == [
        Group((i, i + 3, i + 6), 12) for i in range(3)
    ]


def test_passes_hold_every_datum_once_within_the_bounds() -> None:
    rng = np.random.default_rng(0)
    data = policy_data([3, 60, 8, 5], 3, rng) + policy_data([60], 1, rng)
    found = list(passes(data, 128, 16_000, CPU))
    assert sorted(index for one in found for index in one.indices) == list(range(len(data)))
    assert all(len(one.forest.tokens) <= 128 for one in found)
    assert max(len(d.tokens) for d in data) <= TINY.max_position_embeddings

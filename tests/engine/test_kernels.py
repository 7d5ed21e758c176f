"""Functions with a backward pass of their own, against plain formulas and finite differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F  # noqa: N812

from posttrain.engine.config import DecoderConfig
from posttrain.engine.forest import Rows
from posttrain.engine.head import target_logprobs
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.model import Decoder, rotate
from posttrain.engine.norm import rms_norm
from posttrain.engine.projection import Projection
from posttrain.engine.rotation import angles, interleaved, turn_heads
from posttrain.engine.swiglu import swiglu
from tests.conftest import TINY

F64 = torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator).requires_grad_()


def test_rms_norm() -> None:
    x, weight = numbers(5, 8), numbers(8, seed=1).detach()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), F.rms_norm(x, (8,), weight, 1e-3))
    assert gradcheck(lambda x: rms_norm(x, weight, 1e-3), (x,))


def test_swiglu() -> None:
    both = numbers(4, 10)
    gate, up = both.chunk(2, -1)
    torch.testing.assert_close(swiglu(both), F.silu(gate) * up)
    torch.testing.assert_close(swiglu(both.detach()), swiglu(both))
    assert gradcheck(swiglu, (both,))


def test_heads_are_normed_and_turned_as_the_checkpoint_pairs_them() -> None:
    """Interleaved in, the same numbers as the half-split layout of `model.py`, interleaved."""
    heads, dim, count = 3, 8, 5
    x, weight = numbers(count, heads, dim), numbers(heads, dim, seed=1).detach()
    frequencies = 10.0 ** -(torch.arange(0, dim, 2, dtype=F64) / dim)
    positions = torch.tensor([0, 1, 7, 2, 90])
    order = interleaved(1, dim)
    turns = angles(positions, frequencies)
    found = turn_heads(x[..., order], weight[..., order], turns, 1e-3)
    full = positions[:, None, None] * torch.cat((frequencies, frequencies))
    normed = F.rms_norm(x, (dim,), None, 1e-3) * weight
    expected = rotate(normed, (full.cos(), full.sin()))
    torch.testing.assert_close(found, expected[..., order])
    for eps in (1e-3, None):
        assert gradcheck(lambda x, eps=eps: turn_heads(x, weight, turns, eps), (x,))


def test_interleaved_repeats_for_every_head() -> None:
    assert interleaved(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def small() -> tuple[Decoder, Adapter]:
    torch.manual_seed(3)
    config = DecoderConfig(7, 6, 8, 1, 2, 1, 4, 32, tie_word_embeddings=False)
    decoder = Decoder(config).double().requires_grad_(False)
    adapter = Adapter.fresh(decoder.linear_shapes(), LoraConfig(rank=2, seed=1))
    adapter.factors = {
        path: (numbers(*a.shape, seed=5), numbers(*b.shape, seed=6))
        for path, (a, b) in adapter.factors.items()
    }
    return decoder, adapter


def test_a_projection_is_its_layers_side_by_side() -> None:
    decoder, adapter = small()
    block: Any = decoder.model.layers[0]
    attention = block.self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    order = interleaved(2, 4)
    projection = Projection(layers, F64, [order, None, None])
    del adapter.factors[layers[1].path]  # a layer between two adapted ones may be plain
    projection.refresh(adapter)
    factors = [f for pair in projection.pairs if pair is not None for f in pair]
    x = numbers(20, 6)
    parts = [layer(x, adapter) for layer in layers]
    expected = torch.cat((parts[0][:, order], *parts[1:]), -1)
    torch.testing.assert_close(projection(x), expected)
    upstream = numbers(20, 16, seed=9).detach()
    found = torch.autograd.grad(projection(x), (x, *factors), upstream)
    wanted = torch.autograd.grad(expected, (x, *factors), upstream)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_factors_apart_keep_updates_that_a_merged_weight_would_lose() -> None:
    decoder, adapter = small()
    decoder = decoder.to(torch.bfloat16).float()  # as checkpoints store it
    block: Any = decoder.model.layers[0]
    layer = block.mlp.up_proj
    path = layer.path
    a, b = (f.detach().float().mul_(5e-3).requires_grad_() for f in adapter.factors[path])
    adapter.factors = {path: (a, b)}
    projection = Projection([layer], torch.bfloat16)
    projection.refresh(adapter)
    assert projection.down is not None
    delta = (b @ a).detach() * adapter.scale
    kept = projection.weight[:, 6:].float() @ projection.down.float()
    merged = (layer.weight + delta).to(torch.bfloat16).float() - layer.weight
    assert torch.equal(projection.weight[:, :6].float(), layer.weight)
    assert (kept - delta).norm() < 0.01 * delta.norm()
    assert (merged - delta).norm() > 0.5 * delta.norm()
    x = numbers(64, 6).detach().to(torch.bfloat16).requires_grad_()
    factors = (a, b)
    wide = x.detach().float().requires_grad_()
    expected = layer(wide, adapter)
    upstream = numbers(64, 8, seed=2).detach().float()
    found = torch.autograd.grad(projection(x), (x, *factors), upstream.to(torch.bfloat16))
    wanted = torch.autograd.grad(expected, (wide, *factors), upstream)
    for one, two in zip(found, wanted, strict=True):
        assert (one.float() - two).norm() < 0.01 * two.norm()


def test_target_logprobs_and_their_gradients() -> None:
    decoder, adapter = small()
    head = Projection([decoder.lm_head], F64)
    head.refresh(adapter)
    factors = adapter.factors["lm_head"]
    hidden, targets = numbers(20, 6), torch.randint(0, 7, (20, 3))
    targets[:, 1] = targets[:, 0]  # a target may be given twice
    found = target_logprobs(head, hidden, targets)
    expected = decoder.logits(hidden, adapter).log_softmax(-1).gather(-1, targets)
    torch.testing.assert_close(found, expected)
    upstream = numbers(20, 3, seed=4).detach()
    mine = torch.autograd.grad(found, (hidden, *factors), upstream)
    theirs = torch.autograd.grad(expected, (hidden, *factors), upstream)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two)
    assert gradcheck(lambda h: target_logprobs(head, h, targets), (hidden,))


def test_logprobs_of_very_improbable_targets_are_finite() -> None:
    decoder = Decoder(TINY).requires_grad_(False)
    head = Projection([decoder.lm_head], torch.float32)
    head.refresh(None)
    hidden = decoder.lm_head.weight[:1] * 1e5
    found = target_logprobs(head, hidden, torch.arange(TINY.vocab_size)[None])
    expected = (hidden @ decoder.lm_head.weight.t()).log_softmax(-1)
    assert found.min() < -1000
    torch.testing.assert_close(found, expected)


def test_rows_pad_and_come_back() -> None:
    rows = Rows.of(torch.tensor([2, 3, 0, 1]).numpy(), 1, torch.device("cpu"))
    flat = numbers(7, 2)
    padded = rows.pad(flat)
    assert padded.shape == (4, 3, 2)
    torch.testing.assert_close(padded[1], flat[3:6])
    torch.testing.assert_close(rows.unpad(padded), flat[1:7])
    (gradient,) = torch.autograd.grad(rows.unpad(rows.pad(flat) ** 2).sum(), flat)
    torch.testing.assert_close(gradient[1:], 2 * flat[1:])
    assert not gradient[0].any()

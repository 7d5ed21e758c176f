"""Weights with an adapter in place: how many are kept, and how large they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.engine import models
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.models import Merged, Model, Weights
from posttrain.engine.packed import Packed
from posttrain.engine.tensors import pack, write


@pytest.fixture
def weights(tiny_model_dir: Path, tmp_path: Path) -> list[Weights]:
    """Three samplers on one model."""
    model = Model("m", tiny_model_dir, torch.device("cpu"))
    found = []
    for seed in range(3):
        config = LoraConfig(rank=2, seed=seed)
        file = tmp_path / f"{seed}.safetensors"
        state = Adapter.fresh(model.decoder.linear_shapes(), config).state()
        found.append(Weights(str(seed), model, file, config, checksum=write(file, pack(state))))
    return found


@pytest.mark.parametrize(("copies", "kept"), [(0.5, 1), (1.0, 1), (2.0, 2), (2.9, 2), (3.0, 3)])
def test_as_many_are_kept_as_there_is_room_for(
    weights: list[Weights], monkeypatch: pytest.MonkeyPatch, copies: float, kept: int
) -> None:
    shapes = weights[0].model.decoder.linear_shapes().values()
    size = sum(4 * rows * columns for rows, columns in shapes)  # bytes of float32
    monkeypatch.setattr(models, "ROOM", int(copies * size))
    merged = Merged(torch.float32)
    for each in weights:
        merged.get(each)
    assert list(merged.packed) == ["0", "1", "2"][-kept:]
    assert merged.sizes == dict.fromkeys(merged.packed, size)


def test_the_last_used_are_kept(weights: list[Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MERGED", 2)
    merged = Merged(torch.float32)
    for index in (0, 1, 0, 2):
        merged.get(weights[index])
    assert list(merged.packed) == ["0", "2"]


def test_what_is_shared_with_the_decoder_is_not_counted(weights: list[Weights]) -> None:
    decoder = weights[0].model.decoder
    shapes = decoder.linear_shapes()
    sizes = {path: rows * columns for path, (rows, columns) in shapes.items()}
    alone = ("o_proj", "down_proj", "lm_head")  # not side by side with others
    joined = sum(size for path, size in sizes.items() if not path.endswith(alone))
    assert Packed(decoder).owned == 4 * joined
    half = sum(sizes.values()) - sizes["lm_head"]  # logits are in float32 always
    assert Packed(decoder, None, torch.bfloat16).owned == 2 * half

"""Decoders with an adapter merged in: how many are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posttrain.engine import models
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.models import Merged, Model, Weights


@pytest.fixture
def weights(tiny_model_dir: Path, tmp_path: Path) -> list[Weights]:
    """Three samplers on one model."""
    model = Model("m", tiny_model_dir, torch.device("cpu"))
    found = []
    for seed in range(3):
        config = LoraConfig(rank=2, seed=seed)
        file = tmp_path / f"{seed}.safetensors"
        save_file(Adapter.fresh(model.decoder.linear_shapes(), config).state(), file)
        found.append(Weights(str(seed), model, file, config))
    return found


@pytest.mark.parametrize(("copies", "kept"), [(0.5, 1), (1.0, 1), (2.0, 2), (2.9, 2), (3.0, 3)])
def test_as_many_are_kept_as_there_is_room_for(
    weights: list[Weights], monkeypatch: pytest.MonkeyPatch, copies: float, kept: int
) -> None:
    shapes = weights[0].model.decoder.linear_shapes().values()
    size = sum(4 * rows * columns for rows, columns in shapes)  # bytes of float32
    monkeypatch.setattr(models, "ROOM", int(copies * size))
    merged = Merged()
    for each in weights:
        merged.get(each)
    assert list(merged.decoders) == ["0", "1", "2"][-kept:]
    assert merged.sizes == dict.fromkeys(merged.decoders, size)


def test_the_last_used_are_kept(weights: list[Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MERGED", 2)
    merged = Merged()
    for index in (0, 1, 0, 2):
        merged.get(weights[index])
    assert list(merged.decoders) == ["0", "2"]

"""kill -9 at any instant: what was acknowledged is there, whole, and training goes on from it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.paths import SAMPLER, WEIGHTS, parse
from posttrain.engine.records import RunRecord
from tests.conftest import KEY
from tests.engine.nursery import Child, Engine
from tests.engine.wire import GONE, Client

KILLS = 50


def state_of(root: Path, path: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    store = Store(root)
    checkpoint = store.get(path)
    parts = (store.tensors(checkpoint, file) for file in ("adapter", "optimizer"))
    return {f"{at}.{key}": value for at, part in enumerate(parts) for key, value in part.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def live(
    engine: Engine, latest: tuple[int, str] | None, chance: random.Random
) -> list[tuple[int, str]]:
    """Train and save after each step, until the engine is killed at a random instant.

    Returns the steps whose checkpoints were acknowledged, with their paths.
    """
    acknowledged: list[tuple[int, str]] = []
    with Client(engine.url) as client:
        client.train(latest[1] if latest else None)
        begin = latest[0] if latest else 0
        for number in range(begin, begin + 2):
            client.step(number)
            saved = client.save(f"step-{number + 1}")
            if number > begin:
                # The steps and the save are on their way, and take some milliseconds.
                time.sleep(chance.uniform(0, 0.03))
                engine.kill()
            try:
                acknowledged.append((number + 1, client.result(saved)["path"]))
            except GONE:
                break
    return acknowledged


def test_a_killed_engine_keeps_what_it_acknowledged(tiny_model_dir: Path, tmp_path: Path) -> None:
    """An engine killed fifty times ends where one that was never killed does, to the bit."""
    chance = random.Random(0)
    acknowledged: list[tuple[int, str]] = []
    for _ in range(KILLS):
        with Engine(tiny_model_dir, tmp_path / "killed", KEY) as engine:
            acknowledged += live(engine, acknowledged[-1] if acknowledged else None, chance)
    last = acknowledged[-1][0]
    assert [number for number, _ in acknowledged] == list(range(1, last + 1))
    with Engine(tiny_model_dir, tmp_path / "calm", KEY) as engine, Client(engine.url) as client:
        client.train()
        expected = []
        for number in range(last):
            client.step(number)
            expected.append(client.save(f"step-{number + 1}"))
        calm = [client.result(saved)["path"] for saved in expected]
    for (_, path), other in zip(acknowledged, calm, strict=True):
        assert same(state_of(tmp_path / "killed", path), state_of(tmp_path / "calm", other)), path

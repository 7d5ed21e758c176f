"""kill -9 at any instant: what was acknowledged is there, whole, and training goes on from it."""

from __future__ import annotations

import random
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.engine import leftovers
from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import UserError
from posttrain.engine.paths import WEIGHTS
from tests.conftest import KEY
from tests.engine.doomed import ACTIONS, COPY, RECORD, die_before, numbers, path_of
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


# Every file operation ---------------------------------------------------------------------------


def found(store: Store, path: str) -> int | None:
    """The number that a checkpoint is filled with, None where there is none; never a part of it."""
    if path not in [checkpoint.path for checkpoint in store.checkpoints()]:
        with pytest.raises(UserError, match="does not exist"):
            store.get(path)
        return None
    checkpoint = store.get(path)
    adapter, optimizer = (store.tensors(checkpoint, f) for f in ("adapter", "optimizer"))
    value = int(adapter["x.lora_A"][0, 0])
    assert same(adapter, numbers(value)["adapter"])
    assert same(optimizer, numbers(value)["optimizer"])
    return value


@pytest.mark.parametrize(
    ("action", "path", "before", "after"),
    [
        ("save", path_of("new"), None, 2),
        ("overwrite", path_of("old"), 1, 2),
        ("copy", path_of("old", COPY), None, 1),
        ("delete", path_of("old"), 1, None),
        ("expire", path_of("old"), 1, 1),
    ],
)
def test_death_before_any_file_operation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    path: str,
    before: int | None,
    after: int | None,
) -> None:
    """Either all has happened or nothing; the rest is swept up, and the same can be done again."""
    template = Store(tmp_path / "template")
    template.add_run(RECORD)
    template.save(RECORD, WEIGHTS, "old", numbers(1))
    template.save(RECORD, WEIGHTS, "other", numbers(3))
    outcomes = []
    for operation in range(100):
        root = tmp_path / str(operation)
        shutil.copytree(template.root, root)
        with Child(die_before, root, action, operation) as child:
            child.process.join()
            done = child.process.exitcode == 0
            assert done or child.process.exitcode == -signal.SIGKILL
        store = Store(root)
        outcomes.append(found(store, path))
        assert found(store, path_of("other")) == 3
        if action != "overwrite" and action != "delete":
            assert found(store, path_of("old")) == 1

        with monkeypatch.context() as patched:
            patched.setattr(leftovers, "YOUNG", -1.0)
            store = Store(root)
        assert len(list((root / "data").iterdir())) == len(store.checkpoints())
        assert not list(root.rglob(".*"))
        if not done and outcomes[-1] == before:
            ACTIONS[action](store)
        assert found(store, path) == after
        if done:
            break
    assert len(outcomes) > 5, "the operations were not counted"
    assert set(outcomes) == {before, after}
    assert outcomes[-1] == after
    changes = sum(one != other for one, other in pairwise(outcomes))
    assert changes == (before != after), "there is one instant at which it happens"

"""The store: names, overwriting, expiry, and that what is there is whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from posttrain.engine.checkpoints import SAMPLER, WEIGHTS, RunRecord, Store, parse
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig

RECORD = RunRecord("abc-1:train:0", "posttrain/tiny", LoraConfig(rank=4), {"who": "me"})
TENSORS = {"adapter": {"x.lora_A": torch.arange(6.0).view(2, 3)}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add_run(RECORD)
    return store


def test_what_was_saved_is_read_back_by_another_store(store: Store) -> None:
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS, user_metadata={"a": "b"})
    assert saved.path == "tinker://abc-1:train:0/weights/one"
    again = Store(store.root)
    found = again.get(saved.path)
    assert found == saved
    assert torch.equal(again.tensors(found, "adapter")["x.lora_A"], TENSORS["adapter"]["x.lora_A"])
    assert again.run(RECORD.run) == RECORD
    assert again.runs() == [RECORD]


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../x", "a b", "x" * 129, "a\n", "-a", "é"])
def test_names_that_could_be_paths_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a checkpoint"):
        store.save(RECORD, WEIGHTS, name, TENSORS)
    assert not list((store.root / "data").iterdir())


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "tinker://../weights/x",
        "tinker://abc-1:train:0/weights/../x",
        "tinker://abc-1:train:0/weights/..",
        "tinker://abc-1:train:0/other/x",
        "tinker://abc-1:train:0/weights",
        "tinker://abc-1:train:0/weights/x/y",
        "",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(UserError, match="not a checkpoint path"):
        parse(path)


def test_a_taken_name_needs_overwrite(store: Store) -> None:
    store.save(RECORD, WEIGHTS, "one", TENSORS)
    with pytest.raises(UserError, match="exists; choose another name"):
        store.save(RECORD, WEIGHTS, "one", TENSORS)
    store.save(RECORD, SAMPLER, "one", TENSORS)
    new = {"adapter": {"x.lora_A": torch.zeros(1)}}
    saved = store.save(RECORD, WEIGHTS, "one", new, overwrite=True)
    assert torch.equal(store.tensors(store.get(saved.path), "adapter")["x.lora_A"], torch.zeros(1))
    assert len(list((store.root / "data").iterdir())) == 2


def test_missing_checkpoints_are_named_with_those_there_are(store: Store) -> None:
    store.save(RECORD, WEIGHTS, "one", TENSORS)
    with pytest.raises(UserError, match="weights/two does not exist; there are: one"):
        store.get("tinker://abc-1:train:0/weights/two")
    with pytest.raises(UserError, match="no training run"):
        store.run("../../etc")


def test_expiry_and_deletion(store: Store) -> None:
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS, ttl_seconds=3600)
    assert saved.expires_at is not None
    assert saved.expires_at > time.time()
    store.set_expiry(saved.path, None)
    assert store.get(saved.path).expires_at is None
    store.set_expiry(saved.path, -1)
    with pytest.raises(UserError, match="has expired"):
        store.get(saved.path)
    assert store.checkpoints() == []
    store.save(RECORD, WEIGHTS, "one", TENSORS)  # the name is free again
    store.delete(saved.path)
    assert list((store.root / "data").iterdir()) == []


def test_data_of_a_save_cut_short_are_removed_once_they_are_old(store: Store) -> None:
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS)
    for name, age in (("young", 0), ("old", 7200), (saved.data, 7200)):
        directory = store.root / "data" / name
        directory.mkdir(exist_ok=True)
        os.utime(directory, (time.time() - age,) * 2)
    again = Store(store.root)
    assert {path.name for path in (store.root / "data").iterdir()} == {"young", saved.data}
    assert again.get(saved.path) == saved


def test_newest_first(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.save(RECORD, WEIGHTS, name, TENSORS)
    assert [checkpoint.name for checkpoint in store.checkpoints()] == ["c", "b", "a"]

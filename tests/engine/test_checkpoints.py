"""The store: names, overwriting, expiry, and that what is there is whole."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import UserError
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.paths import SAMPLER, WEIGHTS, parse
from posttrain.engine.records import RunRecord

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


def test_expiry_and_deletion(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS, ttl_seconds=3600)
    assert saved.expires_at is not None
    assert saved.expires_at > time.time()
    store.set_expiry(saved.path, None)
    assert store.get(saved.path).expires_at is None
    store.set_expiry(saved.path, 60)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(UserError, match="has expired"):
        store.get(saved.path)
    assert store.checkpoints() == []
    store.save(RECORD, WEIGHTS, "one", TENSORS)  # the name is free again
    store.delete(saved.path)
    assert list((store.root / "data").iterdir()) == []


@pytest.mark.parametrize("ttl", [0, -1, 10**30])
def test_lifetimes_that_mean_nothing_are_refused(store: Store, ttl: int) -> None:
    with pytest.raises(UserError, match="ttl_seconds is"):
        store.save(RECORD, WEIGHTS, "one", TENSORS, ttl_seconds=ttl)
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS)
    with pytest.raises(UserError, match="ttl_seconds is"):
        store.set_expiry(saved.path, ttl)


def test_what_has_expired_leaves_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(RECORD, WEIGHTS, "short", TENSORS, ttl_seconds=60)
    kept = store.save(RECORD, WEIGHTS, "long", TENSORS, ttl_seconds=7200)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    store.remove_expired()
    assert [path.name for path in (store.root / "data").iterdir()] == [kept.data]
    assert store.every() == [kept]


def test_a_copy_shares_bytes_and_outlives_its_source(store: Store) -> None:
    source = store.save(RECORD, SAMPLER, "one", TENSORS, user_metadata={"a": "b"}, ttl_seconds=9)
    store.publish(source.path, True)
    copied = store.copy(source.path, "def-2:train:0", None)
    assert copied.path == "tinker://def-2:train:0/sampler_weights/one"
    assert (copied.expires_at, copied.public, copied.user_metadata) == (None, False, {"a": "b"})
    pair = [store.file(checkpoint, "adapter")[0] for checkpoint in (source, copied)]
    assert pair[0].stat().st_ino == pair[1].stat().st_ino
    store.delete(source.path)
    assert torch.equal(store.tensors(copied, "adapter")["x.lora_A"], TENSORS["adapter"]["x.lora_A"])
    assert store.run("def-2:train:0").lora == RECORD.lora
    with pytest.raises(UserError, match="exists; copy into another"):
        store.copy(copied.path, "def-2:train:0", None)


def test_what_does_not_belong_into_the_store_is_passed_over(store: Store) -> None:
    """One damaged file must not hide all others."""
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS)
    for name in ("notes", "abc_train_7"):
        (store.root / "runs" / name).mkdir()
        (store.root / "runs" / name / "run.json").write_text("{}")
    damaged = store.description(RECORD.run, WEIGHTS, "two")
    damaged.write_text("{")
    assert store.runs() == [RECORD]
    assert store.checkpoints() == [saved]
    with pytest.raises(UserError, match=r"weights/two is damaged: .*two\.json cannot be read"):
        store.get(f"tinker://{RECORD.run}/weights/two")


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


# Damage, and what crashes leave -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a bit", "cut", "longer", "gone", "another"])
@pytest.mark.parametrize("file", ["adapter", "optimizer"])
def test_damage_is_told_by_name(store: Store, file: str, how: str) -> None:
    parts = {name: {"x": torch.arange(50.0)} for name in ("adapter", "optimizer")}
    saved = store.save(RECORD, WEIGHTS, "one", parts)
    path, _ = store.file(saved, file)
    whole = path.read_bytes()
    if how == "a bit":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif how == "cut":
        path.write_bytes(whole[:-20])
    elif how == "longer":
        path.write_bytes(whole + b"x")
    elif how == "gone":
        path.unlink()
    else:  # what is valid, but not what was saved
        other = store.save(RECORD, WEIGHTS, "two", {file: {"x": torch.zeros(50)}})
        path.write_bytes(store.file(other, file)[0].read_bytes())
    with pytest.raises(UserError, match=f"^checkpoint {saved.path} is damaged: .*{file}.safe"):
        store.tensors(saved, file)
    other_file = {"adapter": "optimizer", "optimizer": "adapter"}[file]
    assert torch.equal(store.tensors(saved, other_file)["x"], torch.arange(50.0))
    # It can be deleted, and its name be used again.
    store.delete(saved.path)
    store.save(RECORD, WEIGHTS, "one", parts)


def test_a_damaged_description_is_replaced_on_request_only(store: Store) -> None:
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS)
    store.description(RECORD.run, WEIGHTS, "one").write_text("{")
    with pytest.raises(UserError, match="one exists; choose another name"):
        store.save(RECORD, WEIGHTS, "one", TENSORS)
    store.save(RECORD, WEIGHTS, "one", TENSORS, overwrite=True)
    assert store.get(saved.path).data != saved.data


def test_an_adapter_is_not_loaded_by_half(store: Store) -> None:
    """The last factor has another shape: the first ones stay as they are."""
    shapes = {"a": (4, 6), "b": (5, 6)}
    config = LoraConfig(rank=2, seed=1)
    mine = Adapter.fresh(shapes, config)
    before = {name: factor.clone() for name, factor in mine.state().items()}
    other = Adapter.fresh(shapes | {"b": (5, 7)}, replace(config, seed=2)).state()
    with pytest.raises(ValueError, match=r"b\.lora_A is \(2, 7\) in the checkpoint, \(2, 6\) here"):
        mine.load(other)
    assert all(torch.equal(before[name], factor) for name, factor in mine.state().items())


@pytest.mark.parametrize("text", ["{", "[]", '{"data": 3', '{"run": "x"}'])
def test_data_whose_description_cannot_be_read_are_not_swept_up(store: Store, text: str) -> None:
    """Neither those of a description that is damaged, nor any others while there is one."""
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS)
    store.description(RECORD.run, WEIGHTS, "one").write_text(text)
    for directory in (store.root / "data").iterdir():
        os.utime(directory, (0, 0))
    Store(store.root)
    assert [path.name for path in (store.root / "data").iterdir()] == [saved.data]


def test_data_of_a_run_whose_record_is_gone_stay(store: Store) -> None:
    saved = store.save(RECORD, WEIGHTS, "one", TENSORS)
    (store.directory(RECORD.run) / "run.json").unlink()
    os.utime(store.root / "data" / saved.data, (0, 0))
    again = Store(store.root)
    assert torch.equal(again.tensors(again.get(saved.path), "adapter")["x.lora_A"],
                       TENSORS["adapter"]["x.lora_A"])  # fmt: skip


def test_files_that_were_never_put_in_place_are_swept_up(store: Store) -> None:
    partial = [
        store.root / "runs" / "abc-1_train_0" / ".run.json.0f",
        store.root / "sessions" / ".s.json.0f",
        store.root / "usage" / ".u.json.0f",
    ]
    for path in partial:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    Store(store.root)
    assert all(path.exists() for path in partial)  # somebody may be about to rename them
    for path in partial:
        os.utime(path, (0, 0))
    Store(store.root)
    assert not any(path.exists() for path in partial)
    assert store.run(RECORD.run) == RECORD


def test_what_was_replaced_meanwhile_is_neither_removed_nor_brought_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expiry is looked for in one thread while another saves under the same name."""
    old = store.save(RECORD, WEIGHTS, "one", TENSORS, ttl_seconds=60)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    new = store.save(RECORD, WEIGHTS, "one", TENSORS)
    store.remove(old)  # as `remove_expired` does with what it has read before
    assert store.get(new.path) == new
    assert store.tensors(new, "adapter")


def test_concurrent_changes_leave_one_whole_checkpoint(store: Store) -> None:
    """Overwriting, changing lifetimes and publishing, in eight threads."""
    store.save(RECORD, WEIGHTS, "one", TENSORS)
    path = f"tinker://{RECORD.run}/weights/one"

    def change(number: int) -> None:
        if number % 3 == 0:
            store.save(RECORD, WEIGHTS, "one", TENSORS, overwrite=True)
        elif number % 3 == 1:
            store.set_expiry(path, 1000 + number)
        else:
            store.publish(path, bool(number % 2))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(change, number) for number in range(60)]:
            done.result()
    (left,) = store.checkpoints()
    assert store.tensors(left, "adapter")
    assert [each.name for each in (store.root / "data").iterdir()] == [left.data]

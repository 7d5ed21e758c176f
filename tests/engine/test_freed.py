"""What is forgotten, and when: snapshots, samplers, clients, results, copies of weights."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.engine import clients, limits, promises, samplers
from posttrain.engine.answers import as_json
from posttrain.engine.clients import Client, make_room
from posttrain.engine.datum import Datum
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.promises import Promises
from posttrain.engine.records import RunRecord
from posttrain.engine.scratch import Scratch
from posttrain.engine.sessions import Session
from posttrain.engine.trainer import AdamParams, Trainer

MODEL = "posttrain/tiny"


def datum(tokens: list[int]) -> Datum:
    return Datum(np.array(tokens[:-1]), {"target_tokens": np.array(tokens[1:])})


@pytest.fixture
def engine(tiny_model_dir: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine({MODEL: tiny_model_dir}, tmp_path)
    yield engine
    engine.close()


def session(engine: Engine) -> Session:
    return engine.sessions.get(engine.sessions.create())


def snapshot(engine: Engine, owner: Session) -> str:
    model = engine.models.find(MODEL)
    trainer = Trainer(model.decoder, LoraConfig(rank=2))
    state, run = trainer.adapter.state(), f"{owner.record.session_id}:train:0"
    return engine.samplers.snapshot(owner, state, model, LoraConfig(rank=2), run)


def idle(engine: Engine) -> None:
    """Wait until the worker has done all its jobs."""
    end = time.monotonic() + 30
    while engine.worker.jobs:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.05)


def test_the_last_used_snapshots_stay(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one that is used outlives younger ones that are not; base models do not count."""
    monkeypatch.setattr(samplers, "NAMELESS", 3)
    owner, other = session(engine), session(engine)
    base = engine.samplers.create(owner, {"base_model": MODEL})
    kept = snapshot(engine, owner)
    theirs = snapshot(engine, other)
    made = []
    for _ in range(6):
        made.append(snapshot(engine, owner))
        engine.samplers.touch(kept)
    assert set(owner.nameless) == {kept, *made[-2:]}
    assert set(owner.samplers) == {base, kept, *made[-2:]}
    files = {path.stem for path in engine.scratch.path.iterdir()}
    assert files == {engine.samplers.get(each).weights.key for each in [*owner.nameless, theirs]}
    with pytest.raises(UserError, match="of those without a name a session keeps the 3 last used"):
        engine.samplers.get(made[0])
    assert len({base, kept, *made}) == 8  # no id is given twice


def test_samplers_of_one_session_are_bounded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SAMPLERS", 5)
    owner = session(engine)
    made = [engine.samplers.create(owner, {"base_model": MODEL}) for _ in range(8)]
    assert list(engine.samplers.by_id) == list(owner.samplers) == made[-5:]


def test_samplers_end_with_their_session_unless_they_are_lent(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = session(engine)
    own, lent = snapshot(engine, owner), snapshot(engine, owner)
    assert engine.samplers.join(lent) == 1
    merged = engine.samplers.merged
    for each in (own, lent):
        merged.get(engine.samplers.get(each).weights)
    engine.sessions.finish(owner.record.session_id, "success", None)
    idle(engine)
    assert list(engine.samplers.by_id) == [lent]
    key = engine.samplers.get(lent).weights.key
    assert list(merged.packed) == list(merged.sizes) == [key]
    assert [path.stem for path in engine.scratch.path.iterdir()] == [key]
    with pytest.raises(UserError, match="has ended"):
        snapshot(engine, owner)
    assert [path.stem for path in engine.scratch.path.iterdir()] == [key]

    engine.tidy()
    assert list(engine.samplers.by_id) == [lent]  # somebody may still use it
    monkeypatch.setattr(samplers, "IDLE", -1.0)
    engine.tidy()
    idle(engine)
    assert not engine.samplers.by_id
    assert not merged.packed
    assert not list(engine.scratch.path.iterdir())


def test_training_clients_end_with_their_session(engine: Engine) -> None:
    """Their adapter, optimizer and copy of the weights are not kept by anybody else."""
    owner = session(engine)
    body = {"session_id": owner.record.session_id, "base_model": MODEL, "model_seq_id": 0}

    async def create() -> str:
        promise = engine.create_model(body | {"lora_config": {"rank": 2}})
        await promise.answer
        return owner.runs[0]

    run = asyncio.run(create())
    trainer = engine.clients[run].trainer
    assert trainer is not None
    trainer.forward_backward([datum([1, 2, 3])], "cross_entropy", {})
    gone: list[weakref.ref[Any]] = [
        weakref.ref(trainer),
        weakref.ref(trainer.packed),
        weakref.ref(trainer.optimizer),
    ]
    del trainer
    engine.sessions.finish(owner.record.session_id, None, None)
    idle(engine)
    gc.collect()
    assert [each() for each in gone] == [None] * 3


def test_a_training_client_that_cannot_be_recorded_is_none(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: RunRecord) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.store, "add_run", full)
    owner = session(engine)
    body = {"session_id": owner.record.session_id, "base_model": MODEL, "model_seq_id": 0}

    async def create() -> bytes:
        return (await engine.create_model(body | {"lora_config": {"rank": 2}}).answer).body

    answer = asyncio.run(create())
    assert b"was not saved: No space left on device; free some space" in answer
    assert not engine.clients
    assert not owner.runs


def test_a_session_ends_although_the_disk_is_full(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is lost; what it held is not kept."""
    owner = session(engine)
    snapshot(engine, owner)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("posttrain.engine.sessions.write_atomically", full)
    engine.sessions.finish(owner.record.session_id, "success", None)
    assert not engine.samplers.by_id
    other = engine.sessions.create()  # and others can be opened
    assert other in [record.session_id for record in engine.sessions.records()]


def test_copies_of_weights_between_optimizer_steps_are_bounded(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five clients score in turns and there is room for two: those used last hold their copy, and
    one that has lost it computes the same bits."""
    decoder = Decoder.load(tiny_model_dir)
    found = [
        Client(
            RunRecord(str(seed), MODEL, LoraConfig(rank=2, seed=seed)),
            Trainer(decoder, LoraConfig(rank=2, seed=seed)),
            used=float(seed),
        )
        for seed in range(5)
    ]
    trainers = [client.trainer for client in found if client.trainer is not None]
    size = trainers[0].pack().owned
    trainers[0].packed = None
    assert size == 4 * sum(rows * columns for rows, columns in decoder.linear_shapes().values())
    monkeypatch.setattr(clients.models, "ROOM", int(2.5 * size))
    for trainer in trainers:
        trainer.forward_backward([datum([1, 2, 3])], "cross_entropy", {})
        before = trainer.forward_backward([datum([3, 4])], "cross_entropy", {}, backward=False)
        make_room(found)
    assert [trainer.packed is not None for trainer in trainers] == [False, False, False, True, True]
    trainers[4].packed = None
    after = trainers[4].forward_backward([datum([3, 4])], "cross_entropy", {}, backward=False)
    assert after.logprobs[0].tobytes() == before.logprobs[0].tobytes()
    monkeypatch.setattr(clients.models, "ROOM", 0)
    make_room(found)
    assert [trainer.packed is not None for trainer in trainers] == [False] * 4 + [True]
    trainers[4].optim_step(AdamParams())
    assert trainers[4].packed is None


def test_results_of_an_ended_session_are_kept_as_if_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those under way are still settled, and then go as well; other sessions keep theirs."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def live() -> list[set[str]]:
        nonlocal now
        kept = Promises()
        done, running = kept.new("a:train:0", 1), kept.new("a:sample:0", 1)
        other = kept.new("b:train:0", 1)
        kept.settle(done, as_json(x=1))
        kept.settle(other, as_json(x=1))
        names = {done.request_id: "done", running.request_id: "running", other.request_id: "other"}
        kept.end("a")
        left = []

        def look() -> None:
            kept.sweep()
            left.append({names[key] for key in kept.by_id})

        look()
        now += promises.FETCHED + promises.SWEEP
        look()
        kept.settle(running, as_json(x=1))
        look()
        now += promises.FETCHED + promises.SWEEP
        look()
        assert kept.kept == len(as_json(x=1).body)
        assert list(kept.by_sequence) == [("b:train:0", 1)]
        return left

    left = asyncio.run(live())
    assert left == [{"done", "running", "other"}, {"running", "other"}, {"running", "other"},
                    {"other"}]  # fmt: skip


def test_scratch_of_the_dead_is_removed_and_that_of_the_living_stays(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from posttrain.engine.scratch import Scratch
scratch = Scratch(pathlib.Path({str(tmp_path)!r}))
(scratch.path / "weights").write_text("x")
print(scratch.path, flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    os.utime(theirs, (0, 0))
    mine = Scratch(tmp_path)
    assert (theirs / "weights").exists()
    other.kill()
    other.wait()
    os.utime(theirs, (0, 0))
    again = Scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine.path, again.path])
    mine.close()
    assert list(tmp_path.iterdir()) == [again.path]
    again.close()

"""A full disk: what does not fit is refused in a sentence, nothing is lost, all goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from posttrain.engine.checkpoints import Store
from posttrain.engine.paths import WEIGHTS
from tests.conftest import KEY
from tests.engine.doomed import COPY, RECORD, numbers, path_of, save_with_limit
from tests.engine.nursery import Child, Engine
from tests.engine.small_disk import limit, may_mount, mount
from tests.engine.test_kill import found
from tests.engine.wire import Client, RefusedError

NOT_SAVED = "was not saved: (No space left on device|File too large); free some space"


def names(client: Client) -> set[str]:
    listed = client.http.get(f"/api/v1/training_runs/{client.run}/checkpoints").json()
    return {checkpoint["checkpoint_id"].split("/")[-1] for checkpoint in listed["checkpoints"]}


@pytest.mark.parametrize("how", ["space", "size"])
def test_an_engine_on_a_full_disk(tiny_model_dir: Path, tmp_path: Path, how: str) -> None:
    """On a file system of a megabyte (where none can be had: files of no length), and where the
    descriptions still fit but the tensors do not."""
    disk = tmp_path / "disk"
    small = how == "space" and may_mount(tmp_path / "probe")
    prepare: Callable[[], None] | None = partial(mount, disk, 2**20) if small else None
    with Engine(tiny_model_dir, disk, KEY, prepare) as engine, Client(engine.url) as client:
        client.train()
        base = client.base_sampler()
        expected = client.result(client.sample(base))
        saved: dict[str, tuple[str, tuple[bytes, bytes]]] = {}

        def save(number: int) -> None:
            client.step(number)
            path = client.result(client.save(f"s{number}"))["path"]
            with Client(engine.url) as other:
                other.train(path)
                saved[path] = (f"s{number}", other.bits())
                other.finish()

        for number in range(2):
            save(number)
        refused = 2
        if not small:
            limit(0 if how == "space" else 4096, engine.pid)
        with pytest.raises(RefusedError, match=NOT_SAVED):  # noqa: PT012 - which one is not known
            for number in range(2, 100):
                refused = number
                save(number)
        for _ in range(10):  # what has failed takes no space
            with pytest.raises(RefusedError, match=NOT_SAVED):
                client.result(client.save(f"s{refused}"))
        assert names(client) == {name for name, _ in saved.values()}
        client.result(client.step(1000)[1])  # training and sampling go on
        assert client.result(client.sample(base)) == expected
        with Client(engine.url) as other:  # and a new session can be opened, to delete for instance
            assert other.result(other.sample(other.base_sampler())) == expected

        if small:
            for gone in list(saved)[:3]:  # also for the records of the clients that look
                client.delete(gone)
                del saved[gone]
        else:
            limit(None, engine.pid)
        save(refused)
        assert names(client) == {name for name, _ in saved.values()}
        for path, (_, bits) in saved.items():
            with Client(engine.url) as other:
                other.train(path)
                assert other.bits() == bits, path
                other.finish()


@pytest.mark.parametrize("size", [0, 300, 1000])
def test_what_could_not_be_written_leaves_nothing(tmp_path: Path, size: int) -> None:
    """The limit meets the tensors (of 1,500 bytes), or in a copy the descriptions (of 700)."""
    store = Store(tmp_path)
    store.add_run(RECORD)
    store.save(RECORD, WEIGHTS, "old", numbers(1))
    before = {str(path) for path in tmp_path.rglob("*")}
    with Child(save_with_limit, tmp_path, size) as child:
        overwritten, saved, copied = (child.receive() for _ in range(3))
    assert overwritten.startswith(f"{path_of('old')} was not saved: File too large; free some")
    assert saved.startswith(f"{path_of('new')} was not saved: File too large; free some")
    assert found(store, path_of("old")) == 1
    if size < 700:
        assert copied.startswith(f"{path_of('old', COPY)} was not saved: File too large; free some")
        after = {str(path) for path in tmp_path.rglob("*")}
        assert {path for path in after - before if not Path(path).is_dir()} == set()
        store.copy(path_of("old"), COPY, None)
    assert found(store, path_of("old", COPY)) == 1
    store.save(RECORD, WEIGHTS, "new", numbers(2))
    assert torch.equal(
        store.tensors(store.get(path_of("new")), "adapter")["x.lora_A"], torch.full((40, 9), 2.0)
    )

"""What processes do to a store until they are killed, or the disk is full.

Apart from the tests: whoever imports those imports much, and a child has to start fast.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.paths import WEIGHTS
from posttrain.engine.records import RunRecord
from tests.engine.small_disk import limit

RECORD = RunRecord("abc-1:train:0", "posttrain/tiny", LoraConfig(rank=4))
COPY = "def-2:train:0"
OPERATIONS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.fsync"}


def path_of(name: str, run: str = RECORD.run) -> str:
    return f"tinker://{run}/{WEIGHTS}/{name}"


def numbers(value: int) -> dict[str, dict[str, Tensor]]:
    filled = torch.full((40, 9), float(value))
    return {"adapter": {"x.lora_A": filled}, "optimizer": {"x.lora_A.exp_avg": -filled}}


ACTIONS = {
    "save": lambda store: store.save(RECORD, WEIGHTS, "new", numbers(2)),
    "overwrite": lambda store: store.save(RECORD, WEIGHTS, "old", numbers(2), overwrite=True),
    "copy": lambda store: store.copy(path_of("old"), COPY, None),
    "delete": lambda store: store.delete(path_of("old")),
    "expire": lambda store: store.set_expiry(path_of("old"), 3600),
}


def die_before(pipe: Connection, root: Path, action: str, operation: int) -> None:
    """Do what `action` names, up to the file operation of this number, counted from 0."""
    store, left = Store(root), operation

    def count(event: str, arguments: tuple[object, ...] = ()) -> None:
        nonlocal left
        if event in OPERATIONS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    fsync = os.fsync

    def counted(handle: int) -> None:
        count("os.fsync")
        fsync(handle)

    os.fsync = counted  # type: ignore[assignment]
    sys.addaudithook(count)
    ACTIONS[action](store)
    left = -1
    pipe.send("done")


def save_with_limit(pipe: Connection, root: Path, size: int) -> None:
    store = Store(root)
    for action in (
        lambda: store.save(RECORD, WEIGHTS, "old", numbers(2), overwrite=True),
        lambda: store.save(RECORD, WEIGHTS, "new", numbers(2)),
        lambda: store.copy(path_of("old"), COPY, None),
    ):
        limit(size)
        try:
            action()
        except UserError as error:
            pipe.send(str(error))
        else:
            pipe.send(None)
        limit(None)

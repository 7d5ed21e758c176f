"""The durable store of training runs and their checkpoints.

    <root>/runs/<run>/run.json                     what the run trains
    <root>/runs/<run>/<segment>/<name>.json        one checkpoint: its description
    <root>/data/<uuid>/*                           its files

The description names its data directory and is put in place by one atomic operation, after
everything it refers to has reached the disk. So a checkpoint exists whole or not at all,
whenever the process is killed, and overwriting one is atomic too.

Safe to use from several threads and processes: all state is in files.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.engine import limits
from posttrain.engine.durable import read_json, sync, write_atomically
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.paths import KINDS, RUN, check_name, parse

Record = TypeVar("Record")


@dataclass(frozen=True)
class RunRecord:
    """What must be known to continue a training run in another process."""

    run: str
    base_model: str
    lora: LoraConfig
    user_metadata: dict[str, str] | None = None
    created: float = field(default_factory=time.time)  # seconds since the epoch
    base_directory: str | None = None  # where the weights of the base model were


@dataclass(frozen=True)
class Checkpoint:
    run: str
    segment: str
    name: str
    data: str
    base_model: str
    lora: LoraConfig
    size_bytes: int
    time: float = field(default_factory=time.time)
    expires_at: float | None = None
    user_metadata: dict[str, str] | None = None
    public: bool = False

    @property
    def path(self) -> str:
        return f"tinker://{self.run}/{self.segment}/{self.name}"

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "runs").mkdir(parents=True, exist_ok=True)
        (root / "data").mkdir(exist_ok=True)
        self.remove_expired()
        self.sweep()

    def sweep(self) -> None:
        """Remove data that no checkpoint refers to: of saves that a crash has cut short."""
        known = {checkpoint.data for checkpoint in self.every()}
        for directory in (self.root / "data").iterdir():
            # Young ones may belong to a save that another process is about to complete.
            if directory.name not in known and directory.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(directory, ignore_errors=True)

    def remove_expired(self) -> None:
        """Free the space of checkpoints whose time has passed."""
        for checkpoint in self.every():
            if checkpoint.expired:
                self.remove(checkpoint)

    def add_run(self, record: RunRecord) -> None:
        directory = self.directory(record.run)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "run.json", asdict(record))

    def run(self, run: str) -> RunRecord:
        """Raises UserError where there is no such run."""
        record = self.read_run(run) if RUN.fullmatch(run) else None
        if record is None:
            raise UserError(f"there is no training run {run!r}")
        return record

    def read_run(self, run: str) -> RunRecord | None:
        raw = read_json(self.directory(run) / "run.json") or {}
        return restore(RunRecord, raw)

    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        names = (path.parent.name for path in (self.root / "runs").glob("*/run.json"))
        runs = [name.replace("_", ":") for name in names]
        found = [self.read_run(run) for run in runs if RUN.fullmatch(run)]
        return sorted(filter(None, found), key=lambda record: -record.created)

    def save(
        self,
        record: RunRecord,
        segment: str,
        name: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        texts: Mapping[str, str] | None = None,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> Checkpoint:
        """Write a checkpoint; when this returns, it is on disk.

        Args:
            tensors: one safetensors file for each entry, e.g. `adapter` and `optimizer`.
            texts: other files to go with them, by name.

        Raises:
            UserError: the name is not allowed, or taken and `overwrite` is not set.
        """
        check_name(name)
        old = self.find(record.run, segment, name)
        if old is not None and not overwrite and not old.expired:
            raise UserError(f"{old.path} exists; choose another name, or pass overwrite=True")
        expires = expiry(ttl_seconds)
        directory = self.new_data()
        for file, state in tensors.items():
            flat = {key: value.contiguous().cpu() for key, value in state.items()}
            save_file(flat, directory / f"{file}.safetensors")
        for file, text in (texts or {}).items():
            (directory / file).write_text(text)
        checkpoint = Checkpoint(
            run=record.run,
            segment=segment,
            name=name,
            data=directory.name,
            base_model=record.base_model,
            lora=record.lora,
            size_bytes=settle(directory),
            expires_at=expires,
            user_metadata=user_metadata,
        )
        self.describe(checkpoint, exclusive=old is None)
        if old is not None:
            shutil.rmtree(self.root / "data" / old.data, ignore_errors=True)
        return checkpoint

    def copy(self, path: str, run: str, ttl_seconds: int | None) -> Checkpoint:
        """The same checkpoint as part of a new run, sharing the source's bytes.

        Raises:
            UserError: there is no such checkpoint, or the run exists.
        """
        source, expires = self.get(path), expiry(ttl_seconds)
        if (self.directory(run) / "run.json").exists():
            raise UserError(f"training run {run} exists; copy into another model_seq_id")
        directory = self.new_data()
        for file in (self.root / "data" / source.data).iterdir():
            os.link(file, directory / file.name)  # deleting the source leaves the copy its data
        settle(directory)
        origin = self.read_run(source.run)
        place = origin.base_directory if origin else None
        self.add_run(
            RunRecord(
                run, source.base_model, source.lora, source.user_metadata, base_directory=place
            )
        )
        copied = replace(
            source,
            run=run,
            data=directory.name,
            time=time.time(),
            expires_at=expires,
            public=False,
        )
        self.describe(copied, exclusive=True)
        return copied

    def new_data(self) -> Path:
        directory = self.root / "data" / uuid.uuid4().hex
        directory.mkdir()
        return directory

    def describe(self, checkpoint: Checkpoint, *, exclusive: bool = False) -> None:
        """Put the description in place, replacing an older one unless `exclusive`."""
        path = self.description(checkpoint.run, checkpoint.segment, checkpoint.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(path, asdict(checkpoint), exclusive=exclusive)
        except FileExistsError:
            shutil.rmtree(self.root / "data" / checkpoint.data, ignore_errors=True)
            raise UserError(f"{checkpoint.path} exists; another process just made it") from None

    def find(self, run: str, segment: str, name: str) -> Checkpoint | None:
        """The checkpoint of that name, expired or not, or None."""
        return restore(Checkpoint, read_json(self.description(run, segment, name)) or {})

    def get(self, path: str) -> Checkpoint:
        """Raises UserError where there is no such checkpoint, or no longer."""
        run, segment, name = parse(path)
        found = self.find(run, segment, name)
        if found is None and self.description(run, segment, name).exists():
            file = self.description(run, segment, name)
            raise UserError(f"checkpoint {path} is damaged: {file} cannot be read")
        if found is None or found.expired:
            have = [c.name for c in self.checkpoints(run) if c.segment == segment]
            there = f"there are: {', '.join(have[:20])}" if have else "the run has none"
            gone = "has expired" if found else "does not exist"
            raise UserError(f"checkpoint {path} {gone}; {there}")
        return found

    def tensors(self, checkpoint: Checkpoint, file: str) -> dict[str, Tensor]:
        """One of the files that `save` was given."""
        return load_file(self.file(checkpoint, file))

    def file(self, checkpoint: Checkpoint, file: str) -> Path:
        return self.root / "data" / checkpoint.data / f"{file}.safetensors"

    def files(self, checkpoint: Checkpoint) -> dict[str, Path]:
        """All files of a checkpoint, by name."""
        return {path.name: path for path in (self.root / "data" / checkpoint.data).iterdir()}

    def every(self, run: str | None = None) -> list[Checkpoint]:
        """Those of one run or of all, expired or not."""
        runs = [run] if run is not None else [record.run for record in self.runs()]
        found = [
            self.find(one, segment, path.name.removesuffix(".json"))
            for one in runs
            for segment in KINDS
            for path in (self.directory(one) / segment).glob("[!.]*.json")
        ]
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def checkpoints(self, run: str | None = None) -> list[Checkpoint]:
        """Those of one run or of all that have not expired, newest first."""
        alive = [checkpoint for checkpoint in self.every(run) if not checkpoint.expired]
        return sorted(alive, key=lambda checkpoint: -checkpoint.time)

    def delete(self, path: str) -> None:
        """Raises UserError where there is no such checkpoint."""
        self.remove(self.get(path))

    def remove(self, checkpoint: Checkpoint) -> None:
        description = self.description(checkpoint.run, checkpoint.segment, checkpoint.name)
        description.unlink(missing_ok=True)
        sync(description.parent)
        shutil.rmtree(self.root / "data" / checkpoint.data, ignore_errors=True)

    def set_expiry(self, path: str, ttl_seconds: int | None) -> None:
        self.describe(replace(self.get(path), expires_at=expiry(ttl_seconds)))

    def publish(self, path: str, public: bool) -> None:
        """Only remembered: on one machine there is nobody to publish to."""
        self.describe(replace(self.get(path), public=public))

    def directory(self, run: str) -> Path:
        return self.root / "runs" / run.replace(":", "_")

    def description(self, run: str, segment: str, name: str) -> Path:
        return self.directory(run) / segment / f"{name}.json"


def restore(kind: type[Record], raw: dict[str, Any]) -> Record | None:
    """A record from its JSON; None where something else stands there."""
    try:
        return kind(**{**raw, "lora": LoraConfig(**raw["lora"])})
    except (KeyError, TypeError):
        return None


def expiry(ttl_seconds: int | None) -> float | None:
    """The moment, in seconds since the epoch, or None for never. Raises UserError."""
    if ttl_seconds is None:
        return None
    if not 0 < ttl_seconds <= limits.TTL:
        raise UserError(f"ttl_seconds is {ttl_seconds}, not between 1 and {limits.TTL}")
    return time.time() + ttl_seconds


def settle(directory: Path) -> int:
    """Wait until a data directory is on disk; the bytes of its files."""
    files: list[Any] = list(directory.iterdir())
    for file in files:
        sync(file)
    sync(directory)
    sync(directory.parent)
    return sum(file.stat().st_size for file in files)

"""The durable store of training runs and their checkpoints.

    <root>/runs/<run>/run.json                     what the run trains
    <root>/runs/<run>/<segment>/<name>.json        one checkpoint: its description
    <root>/data/<uuid>/*.safetensors               its tensors

The description names its data directory and is put in place by one atomic operation, after
everything it refers to has reached the disk. So a checkpoint exists whole or not at all,
whenever the process is killed, and overwriting one is atomic too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig

WEIGHTS, SAMPLER = "weights", "sampler_weights"
SEGMENTS = (WEIGHTS, SAMPLER)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@-]{0,127}")
RUN = re.compile(r"[A-Za-z0-9-]{1,80}:train:[0-9]{1,9}")


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


def parse(path: str) -> tuple[str, str, str]:
    """Split `tinker://<run>/<segment>/<name>`.

    Raises:
        UserError: it is not such a path. Nothing else ever becomes a file name.
    """
    run, segment, name = [*path.removeprefix("tinker://").split("/"), "", ""][:3]
    shape = path == f"tinker://{run}/{segment}/{name}" and segment in SEGMENTS
    if not (shape and RUN.fullmatch(run) and NAME.fullmatch(name)):
        raise UserError(
            f"{path!r} is not a checkpoint path of this engine: "
            f"tinker://<run>/<{' or '.join(SEGMENTS)}>/<name>"
        )
    return run, segment, name


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "runs").mkdir(parents=True, exist_ok=True)
        (root / "data").mkdir(exist_ok=True)
        self.sweep()

    def sweep(self) -> None:
        """Remove data that no checkpoint refers to: of saves that a crash has cut short."""
        known = {checkpoint.data for checkpoint in self.checkpoints()}
        for directory in (self.root / "data").iterdir():
            # Young ones may belong to a save that another process is about to complete.
            if directory.name not in known and directory.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(directory, ignore_errors=True)

    def add_run(self, record: RunRecord) -> None:
        directory = self.directory(record.run)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "run.json", asdict(record), exclusive=False)

    def run(self, run: str) -> RunRecord:
        """Raises UserError where there is no such run."""
        path = self.directory(run) / "run.json" if RUN.fullmatch(run) else None
        if path is None or not path.is_file():
            raise UserError(f"there is no training run {run!r}")
        raw = json.loads(path.read_text())
        return RunRecord(**{**raw, "lora": LoraConfig(**raw["lora"])})

    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        names = [path.parent.name for path in (self.root / "runs").glob("*/run.json")]
        return sorted((self.run(n.replace("_", ":")) for n in names), key=lambda r: -r.created)

    def save(
        self,
        record: RunRecord,
        segment: str,
        name: str,
        tensors: dict[str, dict[str, Tensor]],
        *,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> Checkpoint:
        """Write a checkpoint; when this returns, it is on disk.

        Args:
            tensors: one safetensors file for each entry, e.g. `adapter` and `optimizer`.

        Raises:
            UserError: the name is not allowed, or taken and `overwrite` is not set.
        """
        if not NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot name a checkpoint: use up to 128 letters, digits and any of "
                "_ . = + @ -, beginning with a letter, a digit or _"
            )
        if ttl_seconds is not None and ttl_seconds <= 0:
            raise UserError(f"ttl_seconds is {ttl_seconds}, not positive")
        old = self.find(record.run, segment, name)
        if old is not None and not overwrite and not old.expired:
            raise UserError(f"{old.path} exists; choose another name, or pass overwrite=True")
        data = uuid.uuid4().hex
        size = self.write_data(data, tensors)
        expires = None if ttl_seconds is None else time.time() + ttl_seconds
        checkpoint = Checkpoint(
            run=record.run,
            segment=segment,
            name=name,
            data=data,
            base_model=record.base_model,
            lora=record.lora,
            size_bytes=size,
            expires_at=expires,
            user_metadata=user_metadata,
        )
        self.describe(checkpoint, exclusive=old is None)
        if old is not None:
            shutil.rmtree(self.root / "data" / old.data, ignore_errors=True)
        return checkpoint

    def write_data(self, data: str, tensors: dict[str, dict[str, Tensor]]) -> int:
        directory, size = self.root / "data" / data, 0
        directory.mkdir()
        for file, state in tensors.items():
            path = directory / f"{file}.safetensors"
            save_file({key: value.contiguous().cpu() for key, value in state.items()}, path)
            sync(path)
            size += path.stat().st_size
        sync(directory)
        sync(directory.parent)
        return size

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
        """The checkpoint of that name, expired or not, or None. Raises UserError if damaged."""
        file = self.description(run, segment, name)
        try:
            raw = json.loads(file.read_text())
            return Checkpoint(**{**raw, "lora": LoraConfig(**raw["lora"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            path = f"tinker://{run}/{segment}/{name}"
            raise UserError(f"checkpoint {path} is damaged: {file}: {error!r}") from None

    def get(self, path: str) -> Checkpoint:
        """Raises UserError where there is no such checkpoint, or no longer."""
        run, segment, name = parse(path)
        found = self.find(run, segment, name)
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

    def checkpoints(self, run: str | None = None) -> list[Checkpoint]:
        """Those of one run or of all that have not expired, newest first."""
        runs = [run] if run is not None else [record.run for record in self.runs()]
        found = [
            self.find(one, segment, path.name.removesuffix(".json"))
            for one in runs
            for segment in SEGMENTS
            for path in (self.directory(one) / segment).glob("*.json")
        ]
        alive = [c for c in found if c is not None and not c.expired]
        return sorted(alive, key=lambda checkpoint: -checkpoint.time)

    def delete(self, path: str) -> None:
        """Raises UserError where there is no such checkpoint."""
        checkpoint = self.get(path)
        description = self.description(checkpoint.run, checkpoint.segment, checkpoint.name)
        description.unlink(missing_ok=True)
        sync(description.parent)
        shutil.rmtree(self.root / "data" / checkpoint.data, ignore_errors=True)

    def set_expiry(self, path: str, ttl_seconds: int | None) -> None:
        expires = None if ttl_seconds is None else time.time() + ttl_seconds
        self.describe(replace(self.get(path), expires_at=expires))

    def publish(self, path: str, public: bool) -> None:
        """Only remembered: on one machine there is nobody to publish to."""
        self.describe(replace(self.get(path), public=public))

    def directory(self, run: str) -> Path:
        return self.root / "runs" / run.replace(":", "_")

    def description(self, run: str, segment: str, name: str) -> Path:
        return self.directory(run) / segment / f"{name}.json"


def write_atomically(path: Path, content: dict[str, Any], *, exclusive: bool) -> None:
    """Write JSON so that `path` is never seen half-written, and stays after a crash.

    Raises:
        FileExistsError: `exclusive`, and the path is taken.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    sync(temporary)
    if exclusive:
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()
    else:
        os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

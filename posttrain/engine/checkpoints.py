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

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from posttrain.engine import tensors as files
from posttrain.engine.durable import make_directory, read_json, sync, unwritten, write_atomically
from posttrain.engine.errors import UserError
from posttrain.engine.leftovers import remove_leftovers
from posttrain.engine.paths import KINDS, RUN, check_name, parse
from posttrain.engine.records import Checkpoint, RunRecord, expiry, restore

LOCK = "lock"  # held by who changes descriptions


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        make_directory(root / "runs")
        make_directory(root / "data")
        (root / LOCK).touch()
        self.remove_expired()
        remove_leftovers(root)

    def remove_expired(self) -> None:
        """Free the space of checkpoints whose time has passed."""
        for checkpoint in self.every():
            if checkpoint.expired:
                self.remove(checkpoint)

    def add_run(self, record: RunRecord) -> None:
        """Raises OSError where it cannot be written."""
        directory = self.directory(record.run)
        make_directory(directory)
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
            UserError: the name is not allowed, or taken and `overwrite` is not set, or the disk
                is full. What was there before stays.
        """
        check_name(name)
        self.replaced(record.run, segment, name, overwrite)
        contents = {f"{file}.safetensors": files.pack(state) for file, state in tensors.items()}
        contents |= {file: text.encode() for file, text in (texts or {}).items()}
        checkpoint = Checkpoint(
            run=record.run,
            segment=segment,
            name=name,
            data=uuid.uuid4().hex,
            base_model=record.base_model,
            lora=record.lora,
            size_bytes=sum(map(len, contents.values())),
            checksums={},
            expires_at=expiry(ttl_seconds),
            user_metadata=user_metadata,
        )
        directory = self.root / "data" / checkpoint.data
        with self.undone(checkpoint):
            directory.mkdir()
            for file, content in contents.items():
                checkpoint.checksums[file] = files.write(directory / file, content)
            sync(directory)
            sync(directory.parent)
            with self.changing():
                old = self.replaced(record.run, segment, name, overwrite)
                self.describe(checkpoint)
        if old is not None:
            shutil.rmtree(self.root / "data" / old.data, ignore_errors=True)
        return checkpoint

    def replaced(self, run: str, segment: str, name: str, overwrite: bool) -> Checkpoint | None:
        """The checkpoint that a new one of this name would replace.

        Raises:
            UserError: there is one, and it may not be replaced.
        """
        old = self.find(run, segment, name)
        there = self.description(run, segment, name).exists()  # perhaps damaged
        if there and not overwrite and not (old and old.expired):
            path = f"tinker://{run}/{segment}/{name}"
            raise UserError(f"{path} exists; choose another name, or pass overwrite=True")
        return old

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Descriptions are read and changed by one thread of one process at a time.

        The system gives the lock back when its holder dies.
        """
        with (self.root / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def undone(self, checkpoint: Checkpoint) -> Iterator[None]:
        """If what follows fails, leave nothing of a new checkpoint; a full disk is a UserError."""
        try:
            yield
        except BaseException as error:
            found = self.find(checkpoint.run, checkpoint.segment, checkpoint.name)
            if found is None or found.data != checkpoint.data:  # it was not put in place either
                shutil.rmtree(self.root / "data" / checkpoint.data, ignore_errors=True)
            if isinstance(error, OSError):
                raise unwritten(checkpoint.path, error) from error
            raise

    def copy(self, path: str, run: str, ttl_seconds: int | None) -> Checkpoint:
        """The same checkpoint as part of a new run, sharing the source's bytes.

        Raises:
            UserError: there is no such checkpoint, or the run exists, or the disk is full.
        """
        source, expires = self.get(path), expiry(ttl_seconds)
        if self.directory(run).exists():
            raise UserError(f"training run {run} exists; copy into another model_seq_id")
        origin = self.read_run(source.run)
        record = RunRecord(
            run,
            source.base_model,
            source.lora,
            source.user_metadata,
            base_directory=origin.base_directory if origin else None,
        )
        copied = replace(
            source,
            run=run,
            data=uuid.uuid4().hex,
            time=time.time(),
            expires_at=expires,
            public=False,
        )
        directory = self.root / "data" / copied.data
        aside = self.root / "runs" / f".{copied.data}"
        description = aside / copied.segment / f"{copied.name}.json"
        try:
            with self.undone(copied):
                directory.mkdir()
                for file in source.checksums:
                    # Deleting the source leaves the copy its data.
                    os.link(self.root / "data" / source.data / file, directory / file)
                sync(directory)
                sync(directory.parent)
                make_directory(description.parent)
                write_atomically(aside / "run.json", asdict(record))
                write_atomically(description, asdict(copied))
                with self.changing():
                    if self.directory(run).exists():
                        raise UserError(f"training run {run} exists: another process made it")
                    os.rename(aside, self.directory(run))
                    sync(aside.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return copied

    def describe(self, checkpoint: Checkpoint) -> None:
        """Put the description in place. The caller is `changing`."""
        path = self.description(checkpoint.run, checkpoint.segment, checkpoint.name)
        make_directory(path.parent)
        write_atomically(path, asdict(checkpoint))

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
        """One of the files that `save` was given.

        Raises:
            UserError: it is damaged. Nothing of it is returned then.
        """
        path, checksum = self.file(checkpoint, file)
        return files.read_tensors(checkpoint.path, path, checksum)

    def file(self, checkpoint: Checkpoint, file: str) -> tuple[Path, str]:
        """Where one of the files that `save` was given is, and its checksum.

        Raises:
            UserError: the checkpoint has no such file.
        """
        name = f"{file}.safetensors"
        if name not in checkpoint.checksums:
            raise UserError(f"checkpoint {checkpoint.path} holds no {file}")
        return self.root / "data" / checkpoint.data / name, checkpoint.checksums[name]

    def verified(self, checkpoint: Checkpoint, name: str) -> Path:
        """One of its files, to be sent as it is. Raises UserError where it is damaged."""
        path = self.root / "data" / checkpoint.data / name
        files.read(checkpoint.path, path, checkpoint.checksums[name])
        return path

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
        """Remove a checkpoint, unless another has replaced it, or its lifetime was changed."""
        name = checkpoint.run, checkpoint.segment, checkpoint.name
        with self.changing():
            found = self.find(*name)
            if found is None or (found.data, found.expires_at) != (
                checkpoint.data,
                checkpoint.expires_at,
            ):
                return
            self.description(*name).unlink()
            sync(self.description(*name).parent)
        shutil.rmtree(self.root / "data" / checkpoint.data, ignore_errors=True)

    def set_expiry(self, path: str, ttl_seconds: int | None) -> None:
        expires = expiry(ttl_seconds)
        with self.changing():
            self.describe(replace(self.get(path), expires_at=expires))

    def publish(self, path: str, public: bool) -> None:
        """Only remembered: on one machine there is nobody to publish to."""
        with self.changing():
            self.describe(replace(self.get(path), public=public))

    def directory(self, run: str) -> Path:
        return self.root / "runs" / run.replace(":", "_")

    def description(self, run: str, segment: str, name: str) -> Path:
        return self.directory(run) / segment / f"{name}.json"

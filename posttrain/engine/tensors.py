"""Files of tensors, with the checksums that they are read against."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from posttrain.engine.errors import UserError


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The safetensors file of some tensors."""
    return save({key: value.contiguous().cpu() for key, value in tensors.items()})


def write(path: Path, content: bytes, *, durable: bool = True) -> str:
    """Write a file and return its checksum, SHA-256 in hexadecimal.

    Args:
        durable: return only when the content is on disk.

    Raises:
        OSError: it could not be written, for want of space for instance; nothing is left behind.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return hashlib.sha256(content).hexdigest()


def read(checkpoint: str, path: Path, checksum: str) -> bytes:
    """The content of a file that `write` has written, of the checkpoint of this name.

    Raises:
        UserError: it is not there, cannot be read, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damage(checkpoint, path, f"cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != checksum:
        raise damage(checkpoint, path, "is not what was written: its checksum differs")
    return content


def read_tensors(checkpoint: str, path: Path, checksum: str) -> dict[str, Tensor]:
    """All tensors of a file, by name in alphabetic order. Raises UserError where it is damaged."""
    try:
        return dict(sorted(load(read(checkpoint, path, checksum)).items()))
    except SafetensorError as error:
        raise damage(checkpoint, path, f"is not safetensors: {error}") from None


def damage(checkpoint: str, path: Path, what: str) -> UserError:
    return UserError(f"checkpoint {checkpoint} is damaged: {path} {what}")

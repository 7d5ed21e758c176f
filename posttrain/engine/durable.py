"""Files that are there whole or not at all, and stay after a crash."""

from __future__ import annotations

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

from posttrain.engine.errors import UserError

logger = logging.getLogger(__name__)


def write_atomically(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write JSON so that `path` is never seen half-written.

    Args:
        durable: return only when it would survive a loss of power, which takes milliseconds.

    Raises:
        OSError: it could not be written, for want of space for instance; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def make_directory(path: Path) -> None:
    """A directory, with those above it, that would survive a loss of power."""
    missing = [each for each in (path, *path.parents) if not each.is_dir()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(what: str, error: OSError) -> UserError:
    """What a client is told that asked for something that could not be written."""
    return UserError(
        f"{what} was not saved: {error.strerror or error}; free some space, or delete checkpoints, "
        "and save again"
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's JSON object. None if it does not exist, or (with a warning) is damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return content if isinstance(content, dict) else None

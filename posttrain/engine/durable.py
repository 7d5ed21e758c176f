"""Files that are there whole or not at all, and stay after a crash."""

from __future__ import annotations

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_atomically(
    path: Path, content: Any, *, exclusive: bool = False, durable: bool = True
) -> None:
    """Write JSON so that `path` is never seen half-written.

    Args:
        exclusive: refuse to replace a file.
        durable: return only when it would survive a loss of power, which takes milliseconds.

    Raises:
        FileExistsError: `exclusive`, and the path is taken.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    if durable:
        sync(temporary)
    if exclusive:
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()
    else:
        os.replace(temporary, path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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

"""What a process that was killed leaves in the directory of the checkpoints, and its removal."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

logger = logging.getLogger(__name__)

YOUNG = 3600.0  # seconds; younger things may belong to a save that is about to complete


def remove_leftovers(root: Path) -> None:
    """Remove data that no checkpoint refers to, and files that were never put in place.

    Where a description cannot be read nothing is removed: its data must not be lost with it.
    """
    for path in [*root.glob("runs/**/.*.json.*"), *root.glob("[us]*/.*.json.*")]:
        if old(path):
            path.unlink(missing_ok=True)
    for directory in (root / "runs").glob(".*"):
        if old(directory):
            shutil.rmtree(directory, ignore_errors=True)
    known = data_in_use(root)
    if known is None:
        return
    for directory in (root / "data").iterdir():
        if directory.name not in known and old(directory):
            shutil.rmtree(directory, ignore_errors=True)


def data_in_use(root: Path) -> set[str] | None:
    """The data directories that descriptions name; None where one of them cannot be read."""
    known = set()
    for path in root.glob("runs/[!.]*/*/[!.]*.json"):
        try:
            known.add(str(json.loads(path.read_text())["data"]))
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%r), so no space is freed", path, error)
            return None
    return known


def old(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - YOUNG
    except OSError:
        return False

"""A directory for files that end with the process, also when it is killed."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import uuid
from pathlib import Path

logger = logging.getLogger(__name__)

YOUNG = 60.0  # seconds in which a directory may not have been locked yet


class Scratch:
    """`<root>/<uuid>/`, locked by its owner. Who starts removes what dead owners have left."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for other in root.iterdir():
            remove_if_dead(other)
        self.path = root / uuid.uuid4().hex
        self.path.mkdir()
        self.lock = os.open(self.path, os.O_RDONLY)  # the system unlocks it when the owner dies
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def remove_if_dead(directory: Path) -> None:
    try:
        if directory.stat().st_mtime > time.time() - YOUNG:
            return
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return  # its owner has just removed it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # its owner lives
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(handle)

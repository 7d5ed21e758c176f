"""The results of promises, as they travel."""

from __future__ import annotations

import json
import logging
from typing import Any

from posttrain.engine import limits
from posttrain.engine.errors import UserError
from posttrain.engine.promises import Answer

logger = logging.getLogger(__name__)

PROTOBUF = "application/x-protobuf"


def as_json(**content: Any) -> Answer:
    return Answer(json.dumps(content).encode())


def failure(error: Exception) -> Answer:
    """A failed promise: the user's mistake, or (logged with its trace) the engine's."""
    if isinstance(error, UserError):
        return as_json(error=str(error)[: limits.TEXT], category="user")
    logger.error("a request failed", exc_info=error)
    text = f"the engine failed: {type(error).__name__}: {error}"
    return as_json(error=text[: limits.TEXT], category="server")

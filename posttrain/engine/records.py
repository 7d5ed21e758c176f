"""What is written down about training runs and their checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

from posttrain.engine import limits
from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig

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
    checksums: dict[str, str]  # of each file of the data directory
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

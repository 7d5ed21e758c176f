"""One dial sets every size: SCALE = smoke | laptop | full."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")

# Printed beside every table of results at laptop scale.
HONESTY = "Rankings on a model of this size do not transfer to LLMs; the mechanisms do."


class Scale(StrEnum):
    """How big a run is. A member is also its own name: `Scale.SMOKE == "smoke"`."""

    SMOKE = "smoke"  # seconds: proves that it runs, claims nothing
    LAPTOP = "laptop"  # minutes on two CPU cores: what is committed
    FULL = "full"  # real models and data, on hosted Tinker or a cluster


def scale_from(name: str | None = None) -> Scale:
    """The scale called `name`, else the one in the environment variable SCALE, else laptop.

    Raises ValueError, listing the known scales, for any other word.
    """
    origin = "scale" if name is not None else "environment variable SCALE"
    word = name if name is not None else os.environ.get("SCALE", Scale.LAPTOP.value)
    known = [scale.value for scale in Scale]
    if word not in known:
        raise ValueError(f"{origin}: unknown scale {word!r}; the known ones are {', '.join(known)}")
    return Scale(word)


def pick(scale: Scale, *, smoke: T, laptop: T, full: T) -> T:
    """The one of three values that belongs to `scale`: `steps = pick(scale, smoke=2, ...)`."""
    return {Scale.SMOKE: smoke, Scale.LAPTOP: laptop, Scale.FULL: full}[scale]

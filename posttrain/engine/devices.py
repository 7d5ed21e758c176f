"""The device that models are loaded to."""

from __future__ import annotations

import re

import torch

from posttrain.engine.errors import UserError

KNOWN = "auto, cpu, cuda, cuda:N, mps"


def choose(name: str) -> torch.device:
    """The device of that name; `auto` is cuda where there is one, else mps, else cpu.

    Raises:
        UserError: the name is not known, or this machine has no such device.
    """
    if name == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"unknown device {name!r}; known: {KNOWN}")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            built = torch.version.cuda is not None
            reason = "no GPU is visible" if built else "this PyTorch is built without CUDA"
            raise UserError(f"device {name!r} cannot be used: {reason}; auto takes what there is")
        if (device.index or 0) >= count:
            raise UserError(f"device {name!r} cannot be used: there are {count}, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name!r} cannot be used: this machine or PyTorch has no Metal")
    return device

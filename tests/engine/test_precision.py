"""Which type is computed in, and the heap that tensors come from."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.heap import keep_pages
from posttrain.engine.precision import find_dtype, has_amx

CPU = torch.device("cpu")


def test_dtypes_by_name() -> None:
    assert find_dtype("float32", CPU) == torch.float32
    assert find_dtype("bfloat16", CPU) == torch.bfloat16
    assert find_dtype("auto", CPU) == (torch.bfloat16 if has_amx() else torch.float32)
    with pytest.raises(UserError, match="unknown dtype 'half'; known: float32, bfloat16, auto"):
        find_dtype("half", CPU)
    assert find_dtype("auto", torch.device("mps")) == torch.float32


def test_an_engine_samples_and_trains_in_its_type(tmp_path: Path) -> None:
    engine = Engine({}, tmp_path, dtype="bfloat16")
    assert engine.dtype == engine.samplers.merged.dtype == torch.bfloat16
    engine.worker.stop()


def test_amx_is_read_from_the_processors_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    assert not has_amx(info)
    info.write_text("flags : fpu avx512_bf16 amx_tile\n")
    assert not has_amx(info)
    info.write_text("flags : fpu amx_bf16 amx_tile\n")
    assert has_amx(info)


def test_glibc_accepts_the_parameters() -> None:
    assert keep_pages() == (platform.libc_ver()[0] == "glibc")

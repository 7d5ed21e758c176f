"""Which device is chosen, and what is said where there is none."""

from __future__ import annotations

import pytest
import torch

from posttrain.engine.devices import choose
from posttrain.engine.draw import Policy, precise
from posttrain.engine.errors import UserError
from posttrain.engine.sample import Request


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_prefers_cuda_then_mps(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose("auto") == torch.device(chosen)


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="'cuda:2' cannot be used: there are 2, counted from 0"):
        choose("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device '{name}' cannot be used: "):
        choose(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "CPU", "meta"])
def test_unknown_devices_are_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="known: auto, cpu, cuda, cuda:N, mps"):
        choose(name)


def test_where_there_is_no_float64_tokens_are_drawn_on_the_cpu() -> None:
    assert precise(torch.device("mps", 0)) == torch.device("cpu")
    assert precise(torch.device("cuda", 1)) == torch.device("cuda", 1)
    policy = Policy.of([Request((1,), temperature=0.5, top_k=3)], torch.device("mps"))
    assert policy.temperature is not None
    assert policy.temperature.device == torch.device("cpu")

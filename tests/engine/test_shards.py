"""Weights in one file or several: what is refused, and how much memory loading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.engine.config import DecoderConfig
from posttrain.engine.model import Decoder
from posttrain.engine.models import Model
from posttrain.engine.shards import INDEX, SINGLE, weight_files
from tests.engine.test_families import checkpoint


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """An untied Qwen2 in several shards."""
    checkpoint(tmp_path, "qwen2, untied", shard="20KB")
    assert len(weight_files(tmp_path)) > 2
    return tmp_path


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def refused(directory: Path) -> str:
    """What both starting to serve and loading say, in one line."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Decoder.load(directory)
    with pytest.raises((ValueError, FileNotFoundError), match=r".") as at_start:
        Model("m", directory, torch.device("cpu"))
    assert str(at_start.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    gone = weight_files(sharded)[1]
    gone.unlink()
    assert refused(sharded) == f"{gone} does not exist, but {INDEX} names it"


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_that_names_other_files_is_refused(sharded: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"names '{name}', which is no safetensors file beside it" in refused(sharded)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert "is not an index of weights" in refused(sharded)


def test_pickled_weights_are_never_loaded(sharded: Path) -> None:
    for path in [*weight_files(sharded), sharded / INDEX]:
        path.unlink()
    assert f"has neither {SINGLE} nor {INDEX}" in refused(sharded)
    torch.save({}, sharded / "pytorch_model.bin")
    assert "pytorch_model.bin is pickled, and is never loaded" in refused(sharded)


def test_a_damaged_file_is_named(sharded: Path) -> None:
    path = weight_files(sharded)[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is damaged" in refused(sharded)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    checkpoint(tmp_path, "qwen2, untied")
    path = tmp_path / SINGLE
    first, last = "model.layers.0.self_attn.q_proj.bias", "model.norm.weight"
    rewrite(path, lambda state: state.update({first: torch.zeros(7)}))
    assert f"{first} is (7,), not (32,)" in refused(tmp_path)
    rewrite(path, lambda state: state.update({first: torch.zeros(32, dtype=torch.int8)}))
    assert f"{first} as I8, which is not supported; known: F64, F32" in refused(tmp_path)
    rewrite(path, lambda state: (state.pop(first), state.pop(last)))
    assert f"they lack {first} and 1 more" in refused(tmp_path)
    extra = {first: torch.zeros(32), last: torch.ones(32), "model.extra": torch.zeros(1)}
    rewrite(path, lambda state: state.update(extra))
    assert "they have the unknown model.extra" in refused(tmp_path)


def test_copies_and_constants_in_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    checkpoint(tmp_path, "llama 3")
    before = Decoder.load(tmp_path)
    odd = {"lm_head.weight": torch.zeros(260, 32)}  # tied: the embedding counts
    odd["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    rewrite(tmp_path / SINGLE, lambda state: state.update(odd))
    after = Decoder.load(tmp_path)
    tokens = torch.arange(20)[None]
    assert torch.equal(after.logits(after(tokens)), before.logits(before(tokens)))


LOAD = """
import resource, sys
from pathlib import Path
from posttrain.engine.model import Decoder
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
Decoder.load(Path(sys.argv[1]) / "small")
before = peak()
decoder = Decoder.load(Path(sys.argv[1]) / "large")
print(peak() - before, sum(p.numel() * 4 for p in decoder.parameters()))
"""


def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path) -> None:
    """bfloat16 shards of 8 MiB into 128 MiB of float32: at most a shard and a tensor on top."""
    checkpoint(tmp_path / "small", "llama 3")
    raw = json.loads((tmp_path / "small/config.json").read_text())
    width = 2048
    raw |= {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1}
    raw |= {"head_dim": width // 4, "vocab_size": 512}
    large = tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text(json.dumps(raw))
    places = {}
    for name, parameter in Decoder.empty(DecoderConfig.from_dir(large)).named_parameters():
        places[name] = f"{name}.safetensors"
        state = {name: torch.zeros(parameter.shape, dtype=torch.bfloat16)}
        save_file(state, large / places[name])
    (large / INDEX).write_text(json.dumps({"weight_map": places}))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, size = map(int, done.stdout.split())
    assert size > 80 * 2**20
    assert grown < size + 32 * 2**20

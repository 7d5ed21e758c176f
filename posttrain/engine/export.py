"""Checkpoints as other tools read them: a PEFT adapter, or a whole Hugging Face model."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import UserError
from posttrain.engine.hub import TEXTS, id_of
from posttrain.engine.lora import Adapter
from posttrain.engine.model import Decoder
from posttrain.engine.peft import peft_files
from posttrain.engine.records import Checkpoint, RunRecord
from posttrain.engine.shards import INDEX, SINGLE, ignored, opened, weight_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"


def find(home: Path, path: str) -> tuple[RunRecord, Checkpoint, Adapter]:
    """A checkpoint below `home`, its run and its adapter, in float32 on the CPU.

    Args:
        path: `tinker://<run>/<weights or sampler_weights>/<name>`.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    if not (home / "runs").is_dir():
        raise UserError(f"{home} holds no checkpoints; --home names the directory that does")
    store = Store(home)
    checkpoint = store.get(path)
    adapter = Adapter.of_state(store.tensors(checkpoint, "adapter"), checkpoint.lora)
    return store.run(checkpoint.run), checkpoint, adapter


def base_name(record: RunRecord, shipped: Mapping[str, Path]) -> str:
    """What PEFT shall load the run's base model by: a hub id or a directory, if one is known.

    Args:
        shipped: the directories of models that come with the repository, by name.
    """
    if record.base_model in shipped:
        return str(shipped[record.base_model].resolve())
    recorded = record.base_directory
    return record.base_model if recorded is None else id_of(Path(recorded)) or recorded


def base_directory(record: RunRecord, shipped: Mapping[str, Path]) -> Path:
    """Where the weights are that the run was trained on.

    Raises:
        UserError: they are not there any more.
    """
    for directory in (record.base_directory, shipped.get(record.base_model)):
        if directory is not None and Path(directory).is_dir():
            return Path(directory)
    where = f"is no longer at {record.base_directory}" if record.base_directory else "is unknown"
    raise UserError(
        f"the base model {record.base_model} of {record.run} {where}; pass --base with its "
        "directory or hub id"
    )


def export_adapter(checkpoint: Checkpoint, adapter: Adapter, out: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, as PEFT reads them.

    Args:
        base: the directory or hub id of the model that the adapter belongs to.

    Raises:
        UserError: `out` exists and is not an empty directory.
    """
    state, config = peft_files(adapter, base)
    with whole(out) as partial:
        (partial / "adapter_config.json").write_text(config)
        save_file(state, partial / "adapter_model.safetensors", metadata=origin(checkpoint))


def export_merged(
    checkpoint: Checkpoint,
    adapter: Adapter,
    out: Path,
    base: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the base model with the adapter added into its weights, and its tokenizer.

    Files are read and written one at a time, in the shards that the base has. Where the adapter
    changes an unembedding that the base shares with its embedding, the two part.

    Args:
        base: Hugging Face directory of the model that was trained.
        dtype: of the weights; None keeps that of each tensor of the base.

    Raises:
        UserError: `out` exists and is not an empty directory, or the adapter is of another model.
        FileNotFoundError, ValueError: `base` cannot be loaded.
    """
    decoder = Decoder.check(base)
    check_fit(checkpoint, adapter, decoder, base)
    tied = decoder.config.tie_word_embeddings
    files, total = weight_files(base), 0
    places: dict[str, str] = {}
    with whole(out) as partial:
        for file in files:
            state = merged_state(file, adapter, tied, dtype)
            save_file(state, partial / file.name, metadata=origin(checkpoint))
            places |= dict.fromkeys(state, file.name)
            total += sum(tensor.nbytes for tensor in state.values())
        if [file.name for file in files] != [SINGLE]:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            write_json(partial / INDEX, index)
        config = json.loads((base / "config.json").read_text())
        config["tie_word_embeddings"] = tied and UNEMBEDDING not in places
        if dtype is not None:
            name = str(dtype).removeprefix("torch.")
            config = {**config, "dtype" if "dtype" in config else "torch_dtype": name}
        for text in TEXTS:
            if (base / text).is_file():
                shutil.copyfile(base / text, partial / text)
        write_json(partial / "config.json", config)


def merged_state(
    file: Path, adapter: Adapter, tied: bool, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The tensors of one file of the base with the adapter's updates added, in float32."""
    state = {}
    with opened(file) as base:
        for name in base.keys():  # noqa: SIM118 - not a mapping
            if ignored(name, tied):
                continue
            weight = base.get_tensor(name)
            state[name] = merged(weight, adapter, name.removesuffix(".weight"), dtype)
            if name == EMBEDDING and tied and "lm_head" in adapter.factors:
                state[UNEMBEDDING] = merged(weight, adapter, "lm_head", dtype)
    return state


def merged(weight: Tensor, adapter: Adapter, path: str, dtype: torch.dtype | None) -> Tensor:
    delta = adapter.delta(path)
    total = weight if delta is None else weight.float() + delta.float()
    return total.to(dtype or weight.dtype)


def check_fit(checkpoint: Checkpoint, adapter: Adapter, decoder: Decoder, base: Path) -> None:
    """Raises UserError unless every matrix of the adapter is one of the base."""
    shapes = decoder.linear_shapes()
    for path, (a, b) in adapter.factors.items():
        wanted = (b.shape[0], a.shape[1])
        if shapes.get(path) != wanted:
            have = f"{shapes[path]} there" if path in shapes else "not there"
            raise UserError(
                f"{checkpoint.path} was not trained on the model in {base}: it adapts {path} of "
                f"shape {wanted}, which is {have}; --base names another directory"
            )


def origin(checkpoint: Checkpoint) -> dict[str, str]:
    """Metadata of the files: where they come from. `transformers` asks for the format."""
    return {
        "format": "pt",
        "checkpoint": checkpoint.path,
        "base_model": checkpoint.base_model,
    }


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A directory to write to, which becomes `out` at the end: `out` is never half there.

    Raises:
        UserError: `out` exists and is not an empty directory.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        kind = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{out} {kind}; name a directory that does not exist yet")
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():  # safetensors makes files that only their owner can read
            path.chmod(partial.stat().st_mode & 0o666)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

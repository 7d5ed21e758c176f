"""The weights of a Hugging Face directory: one safetensors file, or several and their index.

Only safetensors are read: other formats can run code when they are opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the directory's weights.

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing.
        ValueError: the index cannot be read, or names a file outside the directory.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {pickled[0]} is pickled, and is never loaded" if pickled else ""
        raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}{hint}")
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights: {error!r}") from None
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is no safetensors file beside it")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} does not exist, but {INDEX} names it")
    return [directory / name for name in names]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose tensors are read one at a time.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def check_weights(directory: Path, shapes: Mapping[str, torch.Size], *, tied: bool) -> None:
    """Compare what the files hold with what a decoder needs, reading no weights.

    Args:
        shapes: of each parameter, by its name in the checkpoint.
        tied: the unembedding is the embedding; a copy of it in the files is ignored.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: tensors are missing, superfluous, of another shape or not floating point.
    """
    missing, odd = dict(shapes), []
    for path in weight_files(directory):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if ignored(name, tied):
                    continue
                if name not in missing:
                    odd.append(name)
                    continue
                found, wanted = file.get_slice(name), missing.pop(name)
                if tuple(found.get_shape()) != tuple(wanted):
                    raise ValueError(
                        f"{path} does not fit its config.json: {name} is "
                        f"{tuple(found.get_shape())}, not {tuple(wanted)}"
                    )
                if found.get_dtype() not in FLOATS:
                    raise ValueError(
                        f"{path} holds {name} as {found.get_dtype()}, which is not supported; "
                        f"known: {', '.join(FLOATS)}"
                    )
    for kind, names in (("lack", list(missing)), ("have the unknown", odd)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"the weights in {directory} do not fit its config.json: they {kind} "
                f"{names[0]}{more}"
            )


def ignored(name: str, tied: bool) -> bool:
    """Old Llama checkpoints store frequencies, which follow from the config."""
    return name.endswith(".rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def read_weights(
    directory: Path, *, tied: bool, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by its name, in memory of its own: beyond those taken, one at a time."""
    for path in weight_files(directory):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                if not ignored(name, tied):
                    tensor = file.get_tensor(name)
                    # Copied: a mapped file that is replaced would change or crash the model.
                    yield name, torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)

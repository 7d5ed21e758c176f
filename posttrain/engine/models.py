"""The base models an engine serves, and what is sampled from: a base with or without adapter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from posttrain.engine.errors import UserError
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.stops import end_tokens, load_tokenizer
from posttrain.engine.tensors import read_tensors

MERGED = 8  # weights with an adapter in place that are kept at hand,
ROOM = 4 * 2**30  # as long as their own matrices take no more than this many bytes


class Model:
    """A Hugging Face directory under a name. The weights are read at first use."""

    def __init__(self, name: str, directory: Path, device: torch.device) -> None:
        """Raises FileNotFoundError or ValueError where the directory cannot be served."""
        self.name = name
        self.directory = directory.resolve()
        self.device = device
        self.config = Decoder.check(self.directory).config
        self.tokenizer = load_tokenizer(self.directory)
        self.eos = end_tokens(self.directory)

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder.load(self.directory, device=self.device)

    @property
    def path(self) -> str:
        return self.full_name(self.directory)

    @staticmethod
    def full_name(directory: Path) -> str:
        """The directory as a model name of the API.

        The SDK loads a sampling client's tokenizer from the model name alone. A name that is an
        absolute directory needs neither network nor cache nor working directory; but one with
        exactly two slashes would be taken for `<org>/<model>/<variant>` and cut.
        """
        text = str(directory.resolve())
        return text if text.count("/") != 2 else text.replace("/", "/./", 1)


class Models:
    def __init__(self, directories: Mapping[str, Path], device: torch.device) -> None:
        self.by_name = {n: Model(n, Path(d), device) for n, d in directories.items()}

    def find(self, name: str) -> Model:
        """By its name or its directory. Raises UserError listing the known names."""
        for model in self.by_name.values():
            if name in (model.name, model.path, str(model.directory)):
                return model
        known = ", ".join(self.by_name) or "none (start the engine with --model NAME=DIR)"
        raise UserError(f"unknown base model {name!r}; known: {known}")


@dataclass(frozen=True)
class Weights:
    """What a sampling client samples from; `key` is the same only for the same numbers.

    The adapter stays in its file: a long run makes thousands of samplers, and uses the last few.
    """

    key: str
    model: Model
    file: Path | None = None  # the adapter's safetensors; None for the base model
    lora: LoraConfig = field(default_factory=LoraConfig)
    path: str | None = None  # of the checkpoint, if it was one
    checksum: str = ""  # of the file, where there is one


class Merged:
    """The most recently used weights, arranged for computing with their adapters in place.

    At least the last one is kept.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.packed: OrderedDict[str, Packed] = OrderedDict()
        self.sizes: dict[str, int] = {}  # bytes that they do not share with the decoder

    def get(self, weights: Weights) -> Packed:
        """Raises UserError where the checkpoint has been deleted."""
        if weights.key not in self.packed:
            adapter = None
            if weights.file is not None:
                name = weights.path or "of this sampler"
                if not weights.file.is_file():
                    raise UserError(f"the weights of {weights.path or 'this sampler'} were deleted")
                state = read_tensors(name, weights.file, weights.checksum)
                state = {key: value.to(weights.model.device) for key, value in state.items()}
                adapter = Adapter.of_state(state, weights.lora)
            packed = self.packed[weights.key] = Packed(weights.model.decoder, adapter, self.dtype)
            self.sizes[weights.key] = packed.owned
        self.packed.move_to_end(weights.key)
        while len(self.packed) > 1 and (
            len(self.packed) > MERGED or sum(self.sizes.values()) > ROOM
        ):
            del self.sizes[self.packed.popitem(last=False)[0]]
        return self.packed[weights.key]

    def release(self, key: str) -> None:
        """Forget weights that nobody can ask for any more."""
        if self.packed.pop(key, None) is not None:
            del self.sizes[key]

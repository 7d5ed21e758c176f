"""Who can be talked to: models, directories, checkpoints and runs, by the name a person gives."""

from __future__ import annotations

import json
from pathlib import Path

import tinker

from posttrain.chat import Voice
from posttrain.connect import shipped_models
from posttrain.renderers import plain_renderer, renderer_for

TRAINING = "/weights/"  # in the path of a checkpoint to train on; it cannot be sampled as it is


def voice(service: tinker.ServiceClient, name: str, plain: bool | None = None) -> Voice:
    """A model that answers.

    Args:
        name: a base model of the backend, a tinker:// path, or the folder of a run, which stands
            for its latest checkpoint.
        plain: ask in the form of the base model's corpus; None means for shipped models only, and
            for those whose tokenizer has no chat format.

    Raises:
        ValueError: the folder holds no run, or its run has no checkpoint yet.
    """
    path = checkpoint_of(name)
    if path is None:
        sampler = service.create_sampling_client(base_model=name).result()
    elif TRAINING in path:
        policy = service.create_training_client_from_state(path).result()
        sampler = policy.save_weights_and_get_sampling_client().result()
    else:
        sampler = service.create_sampling_client(model_path=path).result()
    tokenizer = sampler.get_tokenizer()
    if plain is None:
        plain = path is None and (name in shipped_models() or not tokenizer.chat_template)
    renderer = plain_renderer(tokenizer) if plain else renderer_for(tokenizer)
    return Voice(name, sampler, renderer)


def checkpoint_of(name: str) -> str | None:
    """The tinker:// path that a name stands for; None for the name of a model."""
    if name.startswith("tinker://"):
        return name
    folder = Path(name)
    if not folder.is_dir() or (folder / "tokenizer.json").is_file():
        return None
    file = folder / "checkpoints.json"
    if not file.exists():
        inside = sorted(str(path.parent) for path in folder.glob("**/checkpoints.json"))
        hint = f"; runs are in {', '.join(inside[:8])}" if inside else ""
        raise ValueError(f"{name} is neither a model nor the folder of a run{hint}")
    saved = json.loads(file.read_text())["checkpoints"]
    if not saved:
        raise ValueError(f"the run in {name} has no checkpoint yet")
    return str(saved[-1]["path"])

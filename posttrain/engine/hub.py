"""Where a model's directory is: on this machine, or (only if it is not) on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from posttrain.engine.errors import UserError
from posttrain.engine.shards import INDEX, SINGLE, weight_files

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
OURS = "posttrain/"  # names of shipped models, which nobody may provide on the hub instead
ANSWER = 5.0  # seconds the hub may take to answer at all
TEXTS = (  # what describes a model: JSON and plain text, never code
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
FILES = [*TEXTS, SINGLE, INDEX, "model-*.safetensors"]  # all that is ever downloaded


def directories(entries: Sequence[str]) -> dict[str, Path]:
    """The directories of models given as `SOURCE` or `NAME=SOURCE`, by their names.

    A source is a directory or a hub id such as `Qwen/Qwen3-0.6B`. Without a name, a hub id is its
    own, and a directory goes by its last part.

    Raises:
        UserError: a form that is not understood, a name given twice, or what `locate` says.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not equals or Path(entry).is_dir():
            source = entry
            name = Path(entry).resolve().name if Path(entry).is_dir() else entry
        if not (name and source):
            raise UserError(f"--model {entry!r} is not of the form DIR, ORG/MODEL or NAME=either")
        if name in found:
            raise UserError(f"--model names {name!r} twice")
        found[name] = locate(source)
    return found


def locate(source: str) -> Path:
    """The directory `source`, or that of the hub's model of this id, downloaded if need be.

    Only the files that describe a model and its safetensors are downloaded, into the cache of
    `huggingface_hub`. Without a connection a complete copy in that cache is used.

    Raises:
        UserError: within seconds, where there is no such directory and no such model.
    """
    if Path(source).is_dir():
        return Path(source)
    if not ID.fullmatch(source):
        raise UserError(
            f"there is no directory {source}, and it is not a hub id of the form ORG/MODEL"
        )
    if source.startswith(OURS):
        raise UserError(f"{source} is not shipped here; `posttrain models` lists what is")
    return snapshot(source)


def snapshot(model_id: str) -> Path:
    """Raises UserError where the hub does not have the model or has no safetensors of it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    missing = f"there is no directory {model_id} here, and "
    try:
        siblings = HfApi().model_info(model_id, timeout=ANSWER).siblings or []
        files = {sibling.rfilename for sibling in siblings}
        if "config.json" not in files or not files & {SINGLE, INDEX}:
            raise UserError(
                f"{missing}{model_id} on the hub has no config.json with {SINGLE} or {INDEX}; "
                "no other format is loaded"
            )
        return Path(snapshot_download(model_id, allow_patterns=FILES))
    except UserError:
        raise
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{missing}the hub shows no model {model_id} to you; a private or gated one needs a "
            f"token in HF_TOKEN ({first_line(error)})"
        ) from None
    except Exception as error:  # of sockets, certificates, proxies, or of what the hub answered
        cached = in_cache(model_id)
        if cached is not None:
            return cached
        raise UserError(
            f"{missing}the hub cannot be asked for it: {first_line(error)}; download it where "
            "there is a connection, and pass the directory"
        ) from None


def id_of(directory: Path) -> str | None:
    """The hub id of a directory that `locate` has downloaded, or None."""
    folder, snapshots = directory.parent.parent.name, directory.parent.name
    kind, *parts = folder.split("--")
    return "/".join(parts) if (kind, snapshots, len(parts)) == ("models", "snapshots", 2) else None


def in_cache(model_id: str) -> Path | None:
    """A complete copy that an earlier download left, or None."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(model_id, allow_patterns=FILES, local_files_only=True))
        weight_files(directory)
    except (OSError, ValueError):
        return None
    return directory if (directory / "config.json").is_file() else None


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

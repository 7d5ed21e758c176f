"""From the JSON bodies of the API to the engine's types. Everything raises UserError."""

from __future__ import annotations

import math
import reprlib
from dataclasses import replace
from typing import Any

import numpy as np

from posttrain.engine import limits
from posttrain.engine.errors import TooLargeError, UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.models import Model
from posttrain.engine.prompts import Targets
from posttrain.engine.sample import Request
from posttrain.engine.stops import Stops, read_stops
from posttrain.engine.trainer import AdamParams
from posttrain.engine.wire import check_csr

CHUNKS = {
    "image": "an image",
    "image_asset_pointer": "an image",
    "dmel": "audio (dmel)",
}


def need(body: dict[str, Any], key: str, kind: type) -> Any:
    """A field that must be there, of the given type."""
    value = body.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = reprlib.repr(value)
        raise UserError(f"the request's {key!r} must be of type {kind.__name__}, not {shown}")
    return value


def optional(body: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """A field that may be absent or null. Numbers of type float may be written as integers."""
    value = body.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"the request's {key!r} is too large a number") from None
    return need(body, key, kind)


def read_text(body: dict[str, Any], key: str) -> str | None:
    """A short text that may be absent."""
    text = optional(body, key, str, None)
    if text is not None and len(text) > limits.TEXT:
        raise TooLargeError(f"the request's {key!r} is longer than {limits.TEXT} characters")
    return text


def read_metadata(body: dict[str, Any]) -> dict[str, str] | None:
    """`user_metadata`: short texts by name. The SDK could not read anything else back."""
    found = optional(body, "user_metadata", dict, None)
    for key, value in (found or {}).items():
        if not isinstance(value, str):
            raise UserError(f"user_metadata[{key!r}] must be a string")
    if found and (len(found) > 100 or max(map(len, [*found, *found.values()])) > limits.TEXT):
        raise TooLargeError(
            f"user_metadata holds more than 100 entries, or one of over {limits.TEXT} characters"
        )
    return found


def read_lora(body: dict[str, Any], seed: int) -> LoraConfig:
    """`lora_config`; `seed` serves where the request has none."""
    raw = optional(body, "lora_config", dict, {})
    config = LoraConfig(
        rank=optional(raw, "rank", int, 32),
        seed=optional(raw, "seed", int, seed) % 2**63,
        train_attn=optional(raw, "train_attn", bool, True),
        train_mlp=optional(raw, "train_mlp", bool, True),
        train_unembed=optional(raw, "train_unembed", bool, True),
    )
    if not (config.train_attn or config.train_mlp or config.train_unembed):
        raise UserError("nothing to train: set one of train_attn, train_mlp, train_unembed")
    return config


def refuse_other_optimizers(raw: Any) -> None:
    kind = raw.get("type", "adamw") if isinstance(raw, dict) else "adamw"
    if kind != "adamw":
        shown = reprlib.repr(kind)
        raise UserError(f"optimizer {shown} is not supported by this engine; known: adamw")


def read_adam(body: dict[str, Any]) -> AdamParams:
    refuse_other_optimizers(body.get("optimizer_params"))
    raw = optional(body, "adam_params", dict, {})
    defaults = AdamParams()
    return AdamParams(**{k: optional(raw, k, float, v) for k, v in vars(defaults).items()})


def read_sample(body: dict[str, Any], model: Model) -> Request:
    """The body of `asample`, checked against the model."""
    if body.get("record_stability_info"):
        raise UserError("record_stability_info (for stable_reinforce) is not supported")
    params = optional(body, "sampling_params", dict, {})
    prompt = read_prompt(need(body, "prompt", dict))
    wants_logprobs = optional(body, "prompt_logprobs", bool, False)
    last = optional(body, "prompt_logprobs_last_n", int, None)
    if last is not None and not (wants_logprobs and 1 <= last < max(2, len(prompt))):
        raise UserError(
            f"prompt_logprobs_last_n is {last}; it needs prompt_logprobs, and must be between 1 "
            f"and the prompt's length less 1"
        )
    request = Request(
        prompt=prompt,
        num_samples=optional(body, "num_samples", int, 1),
        max_tokens=optional(params, "max_tokens", int, None),
        temperature=optional(params, "temperature", float, 1.0),
        top_k=optional(params, "top_k", int, -1),
        top_p=optional(params, "top_p", float, 1.0),
        seed=optional(params, "seed", int, None),
        stops=bounded_stops(params.get("stop"), model),
        prompt_logprobs=wants_logprobs,
        topk_prompt=optional(body, "topk_prompt_logprobs", int, 0),
        topk_sample=optional(body, "topk_sample_logprobs", int, 0),
        last_n=last,
        alternatives=optional(body, "prompt_alt_tokens_k", int, 0),
    )
    request.check(model.config)
    vocab = model.config.vocab_size
    if not 0 <= request.alternatives <= vocab:
        raise UserError(f"prompt_alt_tokens_k is not between 0 and {vocab}")
    targets = optional(body, "target_prompt_logprobs", dict, None)
    request = replace(
        request,
        top_k=min(request.top_k, vocab),
        targets=None if targets is None else read_targets(targets, len(prompt) - 1, vocab),
    )
    check_size(request, model)
    return request


def read_prompt(prompt: dict[str, Any]) -> tuple[int, ...]:
    tokens: list[Any] = []
    for chunk in need(prompt, "chunks", list):
        kind = chunk.get("type", "encoded_text") if isinstance(chunk, dict) else chunk
        if kind != "encoded_text":
            what = CHUNKS.get(kind) if isinstance(kind, str) else None
            what = what or f"a prompt chunk of type {reprlib.repr(kind)}"
            raise UserError(f"{what} is not supported by this engine, only encoded_text")
        tokens += need(chunk, "tokens", list)
    if not all(type(token) is int for token in tokens):
        raise UserError("the prompt's tokens must be integers")
    return tuple(tokens)


def bounded_stops(stop: Any, model: Model) -> Stops:
    stops = read_stops(stop, model.eos)
    if isinstance(stop, list) and len(stop) > limits.STOPS:
        raise TooLargeError(f"{len(stop)} stops; the limit is {limits.STOPS}")
    if max(map(len, stops.strings), default=0) > limits.STOP_LENGTH:
        raise TooLargeError(f"a stop string is longer than {limits.STOP_LENGTH} characters")
    if stops.strings and model.tokenizer is None:
        raise UserError(f"model {model.name} has no tokenizer.json, so it cannot stop at strings")
    return stops


def read_targets(raw: dict[str, Any], rows: int, vocab: int) -> Targets:
    """`target_prompt_logprobs`, dense or compressed sparse rows."""
    name = "target_prompt_logprobs"

    def integers(key: str) -> np.ndarray:
        values = need(raw, key, list)
        if not all(type(value) is int and abs(value) < 2**62 for value in values):
            raise UserError(f"{name}: {key} must be integers")
        return np.array(values, np.int64)

    tokens, shape = integers("data"), tuple(integers("shape").tolist())
    if raw.get("dtype") != "int64" or len(shape) != 2 or shape[0] != rows or shape[1] < 1:
        raise UserError(
            f"{name} must be int64 of shape (prompt length - 1, K) = ({rows}, K), not "
            f"{reprlib.repr(raw.get('dtype'))} of shape {reprlib.repr(shape)}"
        )
    if not tokens.size or tokens.min() < -1 or tokens.max() >= vocab or tokens.max() < 0:
        raise UserError(f"{name} must name a token, and only -1 and tokens below {vocab}")
    if raw.get("sparse_crow_indices") is None:
        if tokens.size != math.prod(shape):
            raise UserError(f"{name} holds {tokens.size} tokens, which do not fill {shape}")
        return Targets(np.repeat(np.arange(rows), shape[1]), tokens, shape)
    starts, columns = integers("sparse_crow_indices"), integers("sparse_col_indices")
    try:
        return Targets(
            check_csr(starts, columns, len(tokens), shape), tokens, shape, starts, columns
        )
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def check_size(request: Request, model: Model) -> None:
    """Refuse what would take the memory that all requests share."""
    room, length = request.room(model.config), len(request.prompt)
    scores = length * (request.topk_prompt + request.alternatives)
    scores += request.num_samples * room * request.topk_sample
    if scores > limits.SCORES:
        raise TooLargeError(
            f"the request asks for up to {scores} log-probabilities; the limit is {limits.SCORES}"
        )
    cache = 4 * model.config.cache_cells * request.span(model.config)
    if cache > limits.cache_bytes():
        raise TooLargeError(
            f"{request.num_samples} samples of up to {length + room} tokens may need "
            f"{cache / 2**30:.0f} GiB at once; ask for fewer samples, or lower max_tokens"
        )

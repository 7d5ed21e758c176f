"""From the JSON bodies of the API to the engine's types. Everything raises UserError."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request as HttpRequest

from posttrain.engine.errors import UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.models import Model
from posttrain.engine.sample import Request
from posttrain.engine.stops import read_stops
from posttrain.engine.trainer import AdamParams

UNSUPPORTED = (
    "target_prompt_logprobs",
    "prompt_alt_tokens_k",
    "record_stability_info",
)


async def body_of(request: HttpRequest) -> dict[str, Any]:
    """The JSON object that a request carries; an empty body is an empty object."""
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise UserError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserError("the body is not a JSON object")
    return body


def need(body: dict[str, Any], key: str, kind: type) -> Any:
    """A field that must be there, of the given type."""
    value = body.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"the request's {key!r} must be of type {kind.__name__}, not {value!r}")
    return value


def optional(body: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """A field that may be absent or null. Numbers of type float may be written as integers."""
    if body.get(key) is None:
        return default
    if kind is float and isinstance(body[key], int) and not isinstance(body[key], bool):
        return float(body[key])
    return need(body, key, kind)


def read_lora(body: dict[str, Any], seed: int) -> LoraConfig:
    """`lora_config`; `seed` serves where the request has none."""
    raw = optional(body, "lora_config", dict, {})
    return LoraConfig(
        rank=optional(raw, "rank", int, 32),
        seed=optional(raw, "seed", int, seed) % 2**63,
        train_attn=optional(raw, "train_attn", bool, True),
        train_mlp=optional(raw, "train_mlp", bool, True),
        train_unembed=optional(raw, "train_unembed", bool, True),
    )


def refuse_other_optimizers(raw: Any) -> None:
    kind = raw.get("type", "adamw") if isinstance(raw, dict) else "adamw"
    if kind != "adamw":
        raise UserError(f"optimizer {kind!r} is not supported by this engine; known: adamw")


def read_adam(body: dict[str, Any]) -> AdamParams:
    refuse_other_optimizers(body.get("optimizer_params"))
    raw = optional(body, "adam_params", dict, {})
    defaults = AdamParams()
    return AdamParams(**{k: optional(raw, k, float, v) for k, v in vars(defaults).items()})


def read_sample(body: dict[str, Any], model: Model) -> Request:
    """The body of `asample`, checked against the model."""
    for name in UNSUPPORTED:
        if body.get(name):
            raise UserError(f"{name} is not supported by this engine")
    params = optional(body, "sampling_params", dict, {})
    prompt: list[int] = []
    for chunk in need(need(body, "prompt", dict), "chunks", list):
        kind = chunk.get("type", "encoded_text") if isinstance(chunk, dict) else chunk
        if kind != "encoded_text":
            raise UserError(f"a prompt chunk of type {kind!r} is not supported")
        prompt += need(chunk, "tokens", list)
    if not all(isinstance(token, int) for token in prompt):
        raise UserError("the prompt's tokens must be integers")
    last = optional(body, "prompt_logprobs_last_n", int, None)
    if last is not None and last < 0:
        raise UserError(f"prompt_logprobs_last_n is {last}")
    request = Request(
        prompt=tuple(prompt),
        num_samples=optional(body, "num_samples", int, 1),
        max_tokens=optional(params, "max_tokens", int, None),
        temperature=optional(params, "temperature", float, 1.0),
        top_k=optional(params, "top_k", int, -1),
        top_p=optional(params, "top_p", float, 1.0),
        seed=optional(params, "seed", int, None),
        stops=read_stops(params.get("stop"), model.eos),
        prompt_logprobs=optional(body, "prompt_logprobs", bool, False),
        topk_prompt=optional(body, "topk_prompt_logprobs", int, 0),
        topk_sample=optional(body, "topk_sample_logprobs", int, 0),
        last_n=last,
    )
    if request.stops.strings and model.tokenizer is None:
        raise UserError(f"model {model.name} has no tokenizer.json, so it cannot stop at strings")
    request.check(model.config)
    return request

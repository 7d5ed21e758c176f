"""An engine with two models, clients of it, and the table of how each method is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tinker
from tinker import types

MODEL, OTHER = "posttrain/tiny", "posttrain/other"
CLIENTS = (
    tinker.ServiceClient,
    tinker.TrainingClient,
    tinker.SamplingClient,
    tinker.RestClient,
    tinker.AdminClient,
)
TOKENS = [1, 2, 3, 4, 5]
ADAM = types.AdamParams(learning_rate=1e-2)
GREEDY = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])


def datum(tokens: list[int]) -> types.Datum:
    inputs: Any = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


DATA = [datum(TOKENS), datum([9, 8, 7])]
PROMPT = types.ModelInput.from_ints(TOKENS)


@dataclass
class World:
    """One engine with two base models, and clients of it."""

    url: str
    directory: Path
    service: tinker.ServiceClient
    rest: tinker.RestClient
    admin: tinker.AdminClient
    expected: np.ndarray  # log-probabilities of TOKENS[1:], by transformers
    names: Iterator[str] = field(default_factory=lambda: (f"name{n}" for n in range(10**6)))

    def name(self) -> str:
        return next(self.names)

    def policy(self, **more: Any) -> tinker.TrainingClient:
        return self.service.create_lora_training_client(MODEL, rank=4, seed=1, **more).result()

    def trained(self) -> tinker.TrainingClient:
        policy = self.policy()
        policy.forward_backward(DATA, "cross_entropy")
        policy.optim_step(ADAM).result()
        return policy

    def sampler(self) -> tinker.SamplingClient:
        return self.service.create_sampling_client(base_model=MODEL).result()


Call = Callable[..., Any]
Check = Callable[[World, Call], None]
TABLE: dict[str, Check] = {}


def answers(client: type, *names: str) -> Callable[[Check], Check]:
    """Register what calling these methods, and their twins, must give."""

    def register(check: Check) -> Check:
        for name in names:
            for full in (name, f"{name}_async"):
                if hasattr(client, full):
                    TABLE[f"{client.__name__}.{full}"] = check
        return check

    return register


PROMPT_LESS_ONE = types.ModelInput.from_ints(TOKENS[:-1])


def scores(policy: tinker.TrainingClient) -> np.ndarray:
    outputs = policy.forward(DATA, "cross_entropy").result().loss_fn_outputs
    return np.concatenate([output["logprobs"].to_numpy() for output in outputs])


def step(policy: tinker.TrainingClient) -> None:
    policy.forward_backward(DATA, "cross_entropy")
    policy.optim_step(ADAM).result()


def fetch(world: World, path: str) -> dict[str, bytes]:
    """The files of exported weights, downloaded without a key."""
    urls = world.rest.get_external_weights_urls(path).result().urls
    return {name: httpx.get(url).raise_for_status().content for name, url in urls.items()}


def session_of(world: World) -> str:
    return world.service.holder.get_session_id()


def search(world: World, **query: Any) -> types.SessionSearchResponse:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return world.rest.search_sessions(types.SessionSearchRequest(**query)).result()


def check_models(models: list[types.SupportedModel]) -> None:
    assert [(m.model_name, m.max_context_length) for m in models] == [(MODEL, 128), (OTHER, 128)]
    assert all(model.trainable and model.sampleable for model in models)

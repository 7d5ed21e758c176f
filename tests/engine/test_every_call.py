"""Every public method of the SDK's clients, called on a running engine.

The methods are found by introspection, and how each is called stands in one table: a method that
a new SDK brings fails here until somebody has written down what it should answer. A method and
its deprecated `_async` twin share an entry, and must give the same.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from tinker.lib.public_interfaces import api_future
from transformers import AutoModelForCausalLM

from posttrain.engine.model import Decoder
from tests.conftest import KEY, TINY, start_engine, write_tokenizer
from tests.engine.calls import rest, sampling, service, training
from tests.engine.calls.world import CLIENTS, OTHER, TABLE, TOKENS, Call, World

ENTRIES = (rest, sampling, service, training)  # importing them fills TABLE


def methods() -> list[str]:
    return [
        f"{client.__name__}.{name}"
        for client in CLIENTS
        for name, value in inspect.getmembers(client, callable)
        if not name.startswith("_")
    ]


def caller(method: str) -> Call:
    """Calls `method` on an object and waits for what it returns, whichever way it waits."""

    def call(target: Any, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the twins are deprecated, search is experimental
            found = getattr(target, method)(*args, **kwargs)
            while inspect.iscoroutine(found) or isinstance(found, api_future.APIFuture):
                found = asyncio.run(found) if inspect.iscoroutine(found) else found.result()
            return found

    return call


@pytest.fixture(scope="module")
def world(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    other = tmp_path_factory.mktemp("other")
    torch.manual_seed(1)
    Decoder(TINY).save(other, torch.float32)
    write_tokenizer(other)
    state = tmp_path_factory.mktemp("calls")
    process, url = start_engine(tiny_model_dir, state, "--model", f"{OTHER}={other}")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    scores = logits.log_softmax(-1)[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])]
    client = tinker.ServiceClient(
        {"who": "test"}, "lab", display_name="Every Call", base_url=url, api_key=KEY
    )
    yield World(
        url,
        tiny_model_dir,
        client,
        tinker.RestClient(base_url=url, api_key=KEY),
        tinker.AdminClient(base_url=url, api_key=KEY),
        scores.numpy(),
    )
    client.close("success")
    process.terminate()
    process.wait()


def test_the_table_lists_exactly_the_methods_of_the_sdk() -> None:
    assert sorted(TABLE) == sorted(methods())


@pytest.mark.parametrize("method", methods())
def test_call(world: World, method: str) -> None:
    assert method in TABLE, f"{method} is new in this SDK: say in the table what it answers"
    TABLE[method](world, caller(method.partition(".")[2]))

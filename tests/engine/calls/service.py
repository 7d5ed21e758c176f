"""What each method of ServiceClient must answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from tinker import types

from tests.conftest import KEY
from tests.engine.calls.world import (
    DATA,
    MODEL,
    OTHER,
    PROMPT,
    PROMPT_LESS_ONE,
    TOKENS,
    Call,
    World,
    answers,
    check_models,
    scores,
    search,
    session_of,
    step,
)


@answers(tinker.ServiceClient, "create_lora_training_client")
def new_adapter(world: World, call: Call) -> None:
    """A new adapter leaves the model as it is."""
    policy = call(world.service, MODEL, rank=2, seed=3, user_metadata={"a": "b"})
    found = policy.forward(DATA, "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    np.testing.assert_allclose(found.to_numpy(), world.expected, atol=1e-4)
    assert policy.get_info().lora_rank == 2
    run = world.rest.get_training_run(policy.model_id).result()
    assert run.user_metadata == {"a": "b"}


@answers(tinker.ServiceClient, "create_training_client_from_state")
def from_state(world: World, call: Call) -> None:
    first = world.trained()
    path = first.save_state(world.name()).result().path
    again = call(world.service, path, base_model=MODEL, user_metadata={"from": "state"})
    assert again.model_id != first.model_id
    assert np.array_equal(scores(again), scores(first))
    step(first)
    step(again)  # with a fresh optimizer, so elsewhere
    assert not np.array_equal(scores(again), scores(first))


@answers(tinker.ServiceClient, "create_training_client_from_state_with_optimizer")
def from_state_with_optimizer(world: World, call: Call) -> None:
    first = world.trained()
    again = call(world.service, first.save_state(world.name()).result().path)
    step(first)
    step(again)
    assert np.array_equal(scores(again), scores(first))


@answers(tinker.ServiceClient, "create_sampling_client")
def new_sampler(world: World, call: Call) -> None:
    both = [call(world.service, base_model=model) for model in (MODEL, OTHER)]
    found = [s.compute_logprobs(PROMPT).result()[1:] for s in both]
    np.testing.assert_allclose(found[0], world.expected, atol=1e-4)
    assert not np.allclose(found[0], found[1], atol=1e-2)
    policy = world.trained()
    path = policy.save_weights_for_sampler(world.name()).result().path
    tuned = call(world.service, model_path=path).compute_logprobs(PROMPT).result()[1:]
    np.testing.assert_allclose(tuned, scores(policy)[:4], atol=1e-4)


@answers(tinker.ServiceClient, "create_custom_loss")
def new_custom_loss(world: World, call: Call) -> None:
    def squares(logprobs: Any, advantages: Any) -> Any:
        loss = (advantages * logprobs.square()).sum()
        return loss, {"custom/peak:mean": logprobs.max()}

    handle = call(world.service, squares, {"logprobs": 1, "advantages": 1})
    assert handle.loss_id is not None, "the loss stayed on the client"
    inputs: Any = {"target_tokens": TOKENS[1:], "advantages": [1.0, 2.0, 0.0, -1.0]}
    data = [types.Datum(model_input=PROMPT_LESS_ONE, loss_fn_inputs=inputs)] * 2
    output = world.policy().forward_backward_custom(data, handle).result()
    x = world.expected.astype(float)
    expected = 2 * float((np.array([1.0, 2.0, 0.0, -1.0]) * x**2).sum())
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
    assert output.metrics["custom/peak:mean"] == pytest.approx(x.max(), rel=1e-4)


@answers(tinker.ServiceClient, "copy_weights")
def service_copy(world: World, call: Call) -> None:
    path = world.trained().save_state(world.name()).result().path
    copied = call(world.service, path, ttl_seconds=3600)
    assert copied != path
    again = world.service.create_training_client_from_state_with_optimizer(copied).result()
    original = world.service.create_training_client_from_state_with_optimizer(path).result()
    assert np.array_equal(scores(again), scores(original))
    run = copied.removeprefix("tinker://").split("/")[0]
    (listed,) = world.rest.list_checkpoints(run).result().checkpoints
    assert listed.expires_at is not None
    assert abs((listed.expires_at - datetime.now(UTC)).total_seconds() - 3600) < 60
    found = world.rest.list_training_runs(project_id="lab", limit=1000).result().training_runs
    assert run in [r.training_run_id for r in found]


@answers(tinker.ServiceClient, "close")
def close(world: World, call: Call) -> None:
    service = tinker.ServiceClient(base_url=world.url, api_key=KEY, display_name=world.name())
    policy = service.create_lora_training_client(MODEL, rank=1).result()
    call(service, "errored", "because")
    session = policy.model_id.split(":")[0]
    (found,) = search(world, session_id=session).sessions
    assert isinstance(found.status, types.ClientSessionFinished)
    assert (found.status.reason.type, found.status.detail) == ("errored", "because")
    assert world.rest.get_session(session).result().training_run_ids == [policy.model_id]


@answers(tinker.ServiceClient, "get_server_capabilities")
def service_capabilities(world: World, call: Call) -> None:
    check_models(call(world.service).supported_models)


@answers(tinker.ServiceClient, "create_rest_client")
def rest_client(world: World, call: Call) -> None:
    found = call(world.service)
    assert found.get_session(session_of(world)).result().display_name == "Every Call"


@answers(tinker.ServiceClient, "get_console_url")
@answers(tinker.TrainingClient, "get_console_url")
def console_url(world: World, call: Call) -> None:
    """Made by the SDK, and always of the hosted console."""
    assert call(world.service).startswith("https://")
    assert call(world.policy()).startswith("https://")


@answers(tinker.ServiceClient, "get_telemetry")
@answers(tinker.TrainingClient, "get_telemetry")
@answers(tinker.SamplingClient, "get_telemetry")
@answers(tinker.RestClient, "get_telemetry")
@answers(tinker.AdminClient, "get_telemetry")
def telemetry(world: World, call: Call) -> None:
    """Switched off in the tests; the engine would take it and throw it away."""
    for client in (world.service, world.policy(), world.sampler(), world.rest, world.admin):
        assert call(client) is None
    headers = {"x-api-key": KEY}
    answer = httpx.post(f"{world.url}/api/v1/telemetry", json={"events": []}, headers=headers)
    assert answer.json() == {"status": "accepted"}

"""What each method of TrainingClient must answer."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.torch import load
from tinker import types
from transformers import AutoModelForCausalLM

from tests.engine.calls.world import (
    DATA,
    OTHER,
    PROMPT,
    TOKENS,
    Call,
    World,
    answers,
    fetch,
    scores,
    step,
)


def grad_norm(policy: tinker.TrainingClient) -> float:
    metrics = policy.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics
    assert metrics is not None
    return metrics["grad_norm:mean"]


@answers(tinker.TrainingClient, "forward")
def forward(world: World, call: Call) -> None:
    policy = world.policy()
    output = call(policy, [DATA[0]], "cross_entropy")
    assert output.metrics["loss:sum"] == pytest.approx(-world.expected.sum(), rel=1e-4)
    found = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    np.testing.assert_allclose(found, world.expected, atol=1e-4)
    assert grad_norm(policy) == 0.0


@answers(tinker.TrainingClient, "forward_backward")
def forward_backward(world: World, call: Call) -> None:
    """Twice the same gradient has twice the norm."""
    one, two = world.policy(), world.policy()
    output = call(one, [DATA[0]], "cross_entropy")
    assert output.metrics["loss:sum"] == pytest.approx(-world.expected.sum(), rel=1e-4)
    for _ in range(2):
        call(two, [DATA[0]], "cross_entropy")
    norm = grad_norm(one)
    assert norm > 0.1
    assert grad_norm(two) == pytest.approx(2 * norm, rel=1e-4)
    assert grad_norm(two) == 0.0, "a step forgets the gradient"


@answers(tinker.TrainingClient, "forward_backward_custom")
def forward_backward_custom(world: World, call: Call) -> None:
    def negative(data: list[types.Datum], found: list[torch.Tensor]) -> Any:
        return -sum((lp.sum() for lp in found), torch.zeros(())), {"answer": 42.0}

    custom, plain = world.policy(), world.policy()
    output = call(custom, DATA, negative)
    expected = plain.forward_backward(DATA, "cross_entropy").result().metrics["loss:sum"]
    assert output.metrics["answer"] == 42.0
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    assert grad_norm(custom) == pytest.approx(grad_norm(plain), rel=1e-4)


@answers(tinker.TrainingClient, "optim_step")
def optim_step(world: World, call: Call) -> None:
    """Adam's first step moves every factor by the learning rate: see it in the exported B."""
    policy = world.policy()
    policy.forward_backward(DATA, "cross_entropy").result()
    metrics = call(policy, types.AdamParams(learning_rate=1e-3, eps=1e-12)).metrics
    assert metrics["grad_norm:mean"] > 0.1
    exported = fetch(world, policy.save_weights_external(world.name()).result().path)
    moved = [v.abs() for k, v in load(exported["adapter_model.safetensors"]).items() if "_B" in k]
    distances = torch.cat([values.flatten() for values in moved])
    assert float(distances.max()) == pytest.approx(1e-3, rel=1e-5)
    assert float(distances[distances > 0].median()) == pytest.approx(1e-3, rel=1e-3)


@answers(tinker.TrainingClient, "save_state")
def save_state(world: World, call: Call) -> None:
    policy, name = world.trained(), world.name()
    saved = call(policy, name, ttl_seconds=3600, user_metadata={"k": "v"})
    assert saved.path == f"tinker://{policy.model_id}/weights/{name}"
    (listed,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
    assert (listed.checkpoint_type, listed.user_metadata) == ("training", {"k": "v"})
    assert listed.size_bytes is not None
    with pytest.raises(tinker.RequestFailedError, match="exists; choose another name"):
        call(policy, name)
    before = scores(policy)
    step(policy)
    assert call(policy, name, overwrite=True).path == saved.path
    again = world.service.create_training_client_from_state(saved.path).result()
    assert np.array_equal(scores(again), scores(policy))
    assert not np.array_equal(scores(again), before)


@answers(tinker.TrainingClient, "load_state")
def load_state(world: World, call: Call) -> None:
    policy = world.trained()
    path, before = policy.save_state(world.name()).result().path, scores(policy)
    step(policy)
    assert call(policy, path).path == path
    assert np.array_equal(scores(policy), before)


@answers(tinker.TrainingClient, "load_state_with_optimizer")
def load_state_with_optimizer(world: World, call: Call) -> None:
    policy = world.trained()
    path = policy.save_state(world.name()).result().path
    step(policy)
    after = scores(policy)
    call(policy, path)
    step(policy)
    assert np.array_equal(scores(policy), after)


@answers(tinker.TrainingClient, "save_weights_for_sampler")
def save_weights_for_sampler(world: World, call: Call) -> None:
    policy, name = world.trained(), world.name()
    path = call(policy, name, ttl_seconds=3600, user_metadata={"k": "v"}).path
    assert path == f"tinker://{policy.model_id}/sampler_weights/{name}"
    sampler = world.service.create_sampling_client(model_path=path).result()
    found = sampler.compute_logprobs(PROMPT).result()[1:]
    np.testing.assert_allclose(np.array(found, float), scores(policy)[:4], atol=1e-4)


@answers(tinker.TrainingClient, "save_weights_external")
def save_weights_external(world: World, call: Call) -> None:
    """PEFT computes with the export what the trainer computes."""
    policy, name = world.trained(), world.name()
    saved = call(policy, name, ttl_seconds=3600)
    assert saved.path == f"tinker://{policy.model_id}/external_weights/{name}"
    files = fetch(world, saved.path)
    (listed,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
    assert sum(map(len, files.values())) == listed.size_bytes
    directory = world.directory.parent / f"export-{uuid.uuid4().hex}"
    directory.mkdir()
    for file, content in files.items():
        (directory / file).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(world.directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, directory)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    found = logits[torch.arange(4), torch.tensor(TOKENS[1:])].numpy()
    np.testing.assert_allclose(found, scores(policy)[:4], atol=1e-4)
    assert not np.allclose(found, world.expected, atol=1e-3)


@answers(tinker.TrainingClient, "save_weights_and_get_sampling_client")
def snapshot(world: World, call: Call) -> None:
    policy = world.trained()
    for kind in ("snapshot", "inflight"):
        sampler = call(policy, kind=kind)
        before = np.array(sampler.compute_logprobs(PROMPT).result()[1:], float)
        np.testing.assert_allclose(before, scores(policy)[:4], atol=1e-4)
        step(policy)
        after = np.array(sampler.compute_logprobs(PROMPT).result()[1:], float)
        assert np.array_equal(before, after), "a sampler keeps its weights"


@answers(tinker.TrainingClient, "create_sampling_client")
def sampler_of_path(world: World, call: Call) -> None:
    policy = world.trained()
    path = policy.save_weights_for_sampler(world.name()).result().path
    found = call(policy, path).compute_logprobs(PROMPT).result()[1:]
    np.testing.assert_allclose(np.array(found, float), scores(policy)[:4], atol=1e-4)


@answers(tinker.TrainingClient, "get_info")
def info(world: World, call: Call) -> None:
    policy = world.service.create_lora_training_client(OTHER, rank=3).result()
    found = call(policy)
    assert (found.model_name, found.lora_rank, found.is_lora) == (OTHER, 3, True)
    assert found.model_id == policy.model_id


@answers(tinker.TrainingClient, "get_tokenizer")
@answers(tinker.SamplingClient, "get_tokenizer")
def tokenizer(world: World, call: Call) -> None:
    for client in (world.policy(), world.policy().save_weights_and_get_sampling_client().result()):
        found = call(client)
        assert found.decode(found.encode("hello")) == "hello"

"""Every public method of the SDK's clients, called on a running engine.

The methods are found by introspection, and how each is called stands in one table: a method that
a new SDK brings fails here until somebody has written down what it should answer. A method and
its deprecated `_async` twin share an entry, and must give the same.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import pickle
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.torch import load
from tinker import types
from tinker.lib.public_interfaces import api_future
from transformers import AutoModelForCausalLM

from tests.conftest import KEY, TINY, start_engine, write_tokenizer

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


def methods() -> list[str]:
    return [
        f"{client.__name__}.{name}"
        for client in CLIENTS
        for name, value in inspect.getmembers(client, callable)
        if not name.startswith("_")
    ]


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


@pytest.fixture(scope="module")
def world(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    other = tmp_path_factory.mktemp("other")
    from posttrain.engine.model import Decoder

    torch.manual_seed(1)
    Decoder(TINY).save(other, torch.float32)
    write_tokenizer(other)
    state = tmp_path_factory.mktemp("calls")
    process, url = start_engine(tiny_model_dir, state, "--model", f"{OTHER}={other}")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    scores = logits.log_softmax(-1)[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])]
    service = tinker.ServiceClient(
        {"who": "test"}, "lab", display_name="Every Call", base_url=url, api_key=KEY
    )
    yield World(
        url,
        tiny_model_dir,
        service,
        tinker.RestClient(base_url=url, api_key=KEY),
        tinker.AdminClient(base_url=url, api_key=KEY),
        scores.numpy(),
    )
    service.close("success")
    process.terminate()
    process.wait()


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


def test_the_table_lists_exactly_the_methods_of_the_sdk() -> None:
    assert sorted(TABLE) == sorted(methods())


@pytest.mark.parametrize("method", methods())
def test_call(world: World, method: str) -> None:
    assert method in TABLE, f"{method} is new in this SDK: say in the table what it answers"
    TABLE[method](world, caller(method.partition(".")[2]))


# ServiceClient ---------------------------------------------------------------------------------


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


def check_models(models: list[types.SupportedModel]) -> None:
    assert [(m.model_name, m.max_context_length) for m in models] == [(MODEL, 128), (OTHER, 128)]
    assert all(model.trainable and model.sampleable for model in models)


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


# TrainingClient --------------------------------------------------------------------------------


PROMPT_LESS_ONE = types.ModelInput.from_ints(TOKENS[:-1])


def scores(policy: tinker.TrainingClient) -> np.ndarray:
    outputs = policy.forward(DATA, "cross_entropy").result().loss_fn_outputs
    return np.concatenate([output["logprobs"].to_numpy() for output in outputs])


def step(policy: tinker.TrainingClient) -> None:
    policy.forward_backward(DATA, "cross_entropy")
    policy.optim_step(ADAM).result()


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


def fetch(world: World, path: str) -> dict[str, bytes]:
    """The files of exported weights, downloaded without a key."""
    urls = world.rest.get_external_weights_urls(path).result().urls
    return {name: httpx.get(url).raise_for_status().content for name, url in urls.items()}


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


# SamplingClient --------------------------------------------------------------------------------


@answers(tinker.SamplingClient, "sample")
def sample(world: World, call: Call) -> None:
    """Greedy, the tokens are those of transformers, and so are their log-probabilities."""
    response = call(world.sampler(), PROMPT, 2, GREEDY, include_prompt_logprobs=True)
    model = AutoModelForCausalLM.from_pretrained(world.directory, dtype=torch.float32)
    text, expected = list(TOKENS), []
    with torch.no_grad():
        for _ in range(4):
            logprobs = model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
            text.append(int(logprobs.argmax()))
            expected.append(float(logprobs.max()))
    assert len(response.sequences) == 2
    for sequence in response.sequences:
        assert sequence.tokens == text[len(TOKENS) :]
        np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)
        assert sequence.stop_reason == "length"
    assert len({sequence.sequence_id for sequence in response.sequences}) == 2
    np.testing.assert_allclose(response.prompt_logprobs[1:], world.expected, atol=1e-4)
    assert response.prompt_logprobs[0] is None


@answers(tinker.SamplingClient, "compute_logprobs")
def compute_logprobs(world: World, call: Call) -> None:
    sampler = world.sampler()
    found = call(sampler, PROMPT)
    assert found[0] is None
    np.testing.assert_allclose(found[1:], world.expected, atol=1e-4)
    last = call(sampler, PROMPT, prompt_logprobs_last_n=2)
    assert last[:3] == [None] * 3
    np.testing.assert_allclose(last[3:], world.expected[2:], atol=1e-4)


@answers(tinker.SamplingClient, "get_base_model")
def base_model(world: World, call: Call) -> None:
    assert call(world.sampler()) == MODEL
    tuned = world.policy().save_weights_and_get_sampling_client().result()
    assert Path(call(tuned)) == world.directory  # by which the SDK finds its tokenizer


@answers(tinker.SamplingClient, "get_sampler_handle", "from_sampler_handle")
def handles(world: World, call: Call) -> None:
    """A handle, and a pickle, make clients of the same sampler with request ids of their own."""
    original = world.trained().save_weights_and_get_sampling_client().result()
    handle = original.get_sampler_handle()
    assert KEY not in base64.urlsafe_b64decode(handle).decode()
    copies = [
        tinker.SamplingClient.from_sampler_handle(handle, api_key=KEY),
        pickle.loads(pickle.dumps(original)),
    ]
    expected = original.compute_logprobs(PROMPT).result()
    assert [copy.compute_logprobs(PROMPT).result() for copy in copies] == [expected] * 2
    assert len({copy._request_id_counter // 10**9 for copy in [original, *copies]}) == 3


@answers(tinker.SamplingClient, "create")
def create(world: World, call: Call) -> None:
    found = call(tinker.SamplingClient, world.service.holder, base_model=MODEL)
    np.testing.assert_allclose(
        found.compute_logprobs(PROMPT).result()[1:], world.expected, atol=1e-4
    )


@answers(tinker.SamplingClient, "on_queue_state_change")
def on_queue_state_change(world: World, call: Call) -> None:
    """For the SDK's own use: the engine never pauses a sampler, so it is never called."""
    from tinker.lib.api_future_impl import QueueState

    assert call(world.sampler(), QueueState.ACTIVE, None) is None


# RestClient and AdminClient --------------------------------------------------------------------


@answers(tinker.RestClient, "get_server_capabilities")
def capabilities(world: World, call: Call) -> None:
    check_models(call(world.rest).supported_models)


def session_of(world: World) -> str:
    return world.service.holder.get_session_id()


def search(world: World, **query: Any) -> types.SessionSearchResponse:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return world.rest.search_sessions(types.SessionSearchRequest(**query)).result()


@answers(tinker.RestClient, "list_training_runs")
def list_training_runs(world: World, call: Call) -> None:
    """Newest first, in pages that neither overlap nor leave gaps."""
    new = [world.policy().model_id for _ in range(3)][::-1]
    first = call(world.rest, limit=2, offset=0)
    second = call(world.rest, limit=2, offset=2)
    found = [run.training_run_id for page in (first, second) for run in page.training_runs]
    assert found[:3] == new
    assert len(set(found)) == 4
    assert first.cursor.total_count >= 4
    assert call(world.rest, project_id="nobody").training_runs == []
    mine = call(world.rest, project_id="lab", access_scope="accessible").training_runs
    assert mine[0].training_run_id == new[0]


@answers(tinker.RestClient, "get_training_run")
def get_training_run(world: World, call: Call) -> None:
    policy = world.policy(user_metadata={"x": "y"})
    path = policy.save_state(world.name()).result().path
    run = call(world.rest, policy.model_id)
    assert (run.base_model, run.lora_rank, run.user_metadata) == (MODEL, 4, {"x": "y"})
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert run.last_sampler_checkpoint is None
    assert abs((run.last_request_time - datetime.now(UTC)).total_seconds()) < 60
    with pytest.raises(tinker.BadRequestError, match="no training run"):
        call(world.rest, "nobody:train:0")


@answers(tinker.RestClient, "get_training_run_by_tinker_path")
def get_training_run_by_tinker_path(world: World, call: Call) -> None:
    policy = world.policy()
    path = policy.save_state(world.name()).result().path
    assert call(world.rest, path).training_run_id == policy.model_id


@answers(tinker.RestClient, "get_weights_info_by_tinker_path")
def get_weights_info(world: World, call: Call) -> None:
    policy = world.policy(train_mlp=False)
    found = call(world.rest, policy.save_state(world.name()).result().path)
    assert (found.base_model, found.is_lora, found.lora_rank) == (MODEL, True, 4)
    assert (found.train_attn, found.train_mlp, found.train_unembed) == (True, False, True)


@answers(tinker.RestClient, "list_checkpoints")
def list_checkpoints(world: World, call: Call) -> None:
    policy = world.policy()
    policy.save_state("a").result()
    policy.save_weights_for_sampler("b").result()
    policy.save_weights_external("c").result()
    found = call(world.rest, policy.model_id).checkpoints
    kinds = ("external_weights/c", "sampler_weights/b", "weights/a")
    assert tuple(checkpoint.checkpoint_id for checkpoint in found) == kinds
    assert [c.checkpoint_type for c in found] == ["external", "sampler", "training"]


@answers(tinker.RestClient, "list_user_checkpoints")
def list_user_checkpoints(world: World, call: Call) -> None:
    paths = [world.policy().save_state("x").result().path for _ in range(3)][::-1]
    pages = [call(world.rest, limit=2, offset=offset) for offset in (0, 2)]
    found = [checkpoint.tinker_path for page in pages for checkpoint in page.checkpoints]
    assert found[:3] == paths
    assert pages[0].cursor.total_count >= 3


@answers(tinker.RestClient, "delete_checkpoint", "delete_checkpoint_from_tinker_path")
def delete_checkpoint(world: World, call: Call) -> None:
    policy = world.policy()
    path = policy.save_weights_for_sampler("x").result().path
    sampler = world.service.create_sampling_client(model_path=path).result()
    try:
        call(world.rest, path)
    except TypeError:
        call(world.rest, policy.model_id, "sampler_weights/x")
    assert world.rest.list_checkpoints(policy.model_id).result().checkpoints == []
    with pytest.raises(tinker.RequestFailedError, match="does not exist"):
        sampler.sample(PROMPT, 1, GREEDY).result()


@answers(
    tinker.RestClient,
    "publish_checkpoint_from_tinker_path",
    "unpublish_checkpoint_from_tinker_path",
)
def publish(world: World, call: Call) -> None:
    policy = world.policy()
    path = policy.save_state("x").result().path

    def public() -> bool:
        return world.rest.list_checkpoints(policy.model_id).result().checkpoints[0].public

    world.rest.publish_checkpoint_from_tinker_path(path).result()
    assert public()
    assert call(world.rest, path) is None
    world.rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not public()


@answers(tinker.RestClient, "set_checkpoint_ttl_from_tinker_path")
def set_ttl(world: World, call: Call) -> None:
    """What has expired is neither listed nor loaded."""
    policy = world.policy()
    path = policy.save_state("x").result().path
    call(world.rest, path, 1)
    (found,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
    assert found.expires_at is not None
    call(world.rest, path, None)
    (found,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
    assert found.expires_at is None
    call(world.rest, path, 1)
    time.sleep(1.1)
    assert world.rest.list_checkpoints(policy.model_id).result().checkpoints == []
    with pytest.raises(tinker.RequestFailedError, match="has expired"):
        world.service.create_training_client_from_state(path).result()


@answers(tinker.RestClient, "get_external_weights_urls")
def external_urls(world: World, call: Call) -> None:
    policy = world.policy()
    found = call(world.rest, policy.save_weights_external("x").result().path)
    assert sorted(found.urls) == ["adapter_config.json", "adapter_model.safetensors"]
    assert timedelta(minutes=50) < found.expires - datetime.now(UTC) < timedelta(minutes=70)
    config = httpx.get(found.urls["adapter_config.json"]).json()
    assert (config["r"], config["lora_alpha"]) == (4, 32.0)
    forged = found.urls["adapter_config.json"].replace("adapter_config", "adapter_model")
    assert httpx.get(forged).status_code == 403
    with pytest.raises(ValueError, match="only accepts external weights"):
        call(world.rest, policy.save_state("y").result().path)


@answers(tinker.RestClient, "copy_weights")
def rest_copy(world: World, call: Call) -> None:
    source = world.trained().save_weights_for_sampler(world.name()).result().path
    copied = call(world.rest, source, "archive")
    world.rest.delete_checkpoint_from_tinker_path(source).result()
    sampler = world.service.create_sampling_client(model_path=copied).result()
    assert len(sampler.sample(PROMPT, 1, GREEDY).result().sequences[0].tokens) == 4
    runs = world.rest.list_training_runs(project_id="archive").result().training_runs
    assert copied.removeprefix("tinker://").split("/")[0] in [r.training_run_id for r in runs]


@answers(tinker.RestClient, "list_sessions")
def list_sessions(world: World, call: Call) -> None:
    new = []
    for _ in range(2):
        service = tinker.ServiceClient(base_url=world.url, api_key=KEY)
        service.create_sampling_client(base_model=MODEL).result()
        new.append(service.holder.get_session_id())
        service.close("success")
    pages = [call(world.rest, limit=1, offset=offset).sessions for offset in (0, 1)]
    assert [*pages[0], *pages[1]] == new[::-1]


@answers(tinker.RestClient, "get_session")
def get_session(world: World, call: Call) -> None:
    policy, sampler = world.policy(), world.sampler()
    found = call(world.rest, session_of(world))
    assert found.training_run_ids[-1] == policy.model_id
    assert sampler._sampling_session_id in found.sampler_ids
    assert (found.display_name, found.user_metadata) == ("Every Call", {"who": "test"})


@answers(tinker.RestClient, "assign_session_project")
def assign_project(world: World, call: Call) -> None:
    service = tinker.ServiceClient(base_url=world.url, api_key=KEY)
    run = service.create_lora_training_client(MODEL, rank=1).result().model_id
    project = world.name()
    call(world.rest, service.holder.get_session_id(), project)
    runs = world.rest.list_training_runs(project_id=project).result().training_runs
    assert [found.training_run_id for found in runs] == [run]
    service.close("success")


@answers(tinker.RestClient, "export_session_trace")
def trace(world: World, call: Call) -> None:
    policy = world.trained()
    events = httpx.get(call(world.rest, session_of(world))).json()["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    mine = [e for e in events if e["ph"] == "X" and rows[e["tid"]] == policy.model_id]
    assert [event["name"] for event in mine] == ["forward_backward", "optim_step"]
    assert all(event["dur"] > 0 for event in mine)
    assert abs(mine[0]["ts"] / 1e6 - time.time()) < 60


@answers(tinker.RestClient, "search_sessions")
def search_sessions(world: World, call: Call) -> None:
    """Three sessions found by words of their names, page by page, newest first."""
    mark, made = world.name(), []
    for color in ("Red", "Green", "Blue"):
        service = tinker.ServiceClient(
            {"mark": mark},
            base_url=world.url,
            api_key=KEY,
            display_name=f"Nightly {color} {mark}",
        )
        service.create_sampling_client(base_model=MODEL).result()
        made.append(service)
    ids = [service.holder.get_session_id() for service in made][::-1]
    request = types.SessionSearchRequest(display_name=f"{mark} nightly", limit=2)
    first = call(world.rest, request)
    second = call(world.rest, request.model_copy(update={"cursor": first.next_cursor}))
    assert [s.session_id for s in (*first.sessions, *second.sessions)] == ids
    assert second.next_cursor is None
    made[0].close("interrupted").result()

    def found(**query: Any) -> list[str]:
        query["user_metadata"] = {"mark": mark}
        page = call(world.rest, types.SessionSearchRequest(**query))
        return [session.session_id for session in page.sessions]

    interrupted = types.ClientFinishedSessionStatusQuery(reasons=["interrupted"])
    assert found(statuses=[interrupted]) == ids[2:]
    assert found(statuses=[types.ActiveSessionStatusQuery()]) == ids[:2]
    assert found(owner=types.UserSearchOwner(owner_urns=["tml:user:somebody"])) == []
    assert found(project_ids=["nobody"]) == []
    assert found(session_id=ids[1]) == [ids[1]]
    for service in made[1:]:
        service.close("success")


@answers(tinker.RestClient, "whoami")
def whoami(world: World, call: Call) -> None:
    found = call(world.rest)
    assert (found.user_urn, found.email) == ("tml:user:local", None)
    assert found.org_urn == "tml:organization:local"


@answers(tinker.RestClient, "get_sampler")
def get_sampler(world: World, call: Call) -> None:
    path = world.policy().save_weights_for_sampler(world.name()).result().path
    sampler = world.service.create_sampling_client(model_path=path).result()
    found = call(world.rest, sampler._sampling_session_id)
    assert found.model_path == path
    assert Path(found.base_model) == world.directory


@answers(tinker.RestClient, "get_audit_log")
@answers(tinker.AdminClient, "get_audit_log")
def audit_log(world: World, call: Call) -> None:
    assert call(world.rest).entries == []
    assert call(world.admin, "checkpoints").entries == []


@answers(tinker.RestClient, "get_billing_usage")
@answers(tinker.AdminClient, "get_billing_usage")
def usage(world: World, call: Call) -> None:
    """The tokens that one run has really used, and they cost nothing."""
    policy = world.policy()
    policy.forward_backward(DATA, "cross_entropy").result()  # 4 + 2 tokens
    policy.forward(DATA[1:], "cross_entropy").result()  # 2 more
    sampler = policy.save_weights_and_get_sampling_client().result()
    sampler.sample(PROMPT, 3, GREEDY).result()  # a prompt of 5, and 3 times 4 tokens
    policy.save_state(world.name()).result()
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    call(world.admin, hour - timedelta(hours=1), hour + timedelta(hours=1))
    call(world.rest, str(hour - timedelta(hours=1)), str(hour + timedelta(hours=1)))
    # The type of the SDK has no field for the run, which this engine adds: read the answer itself.
    answer = httpx.get(
        f"{world.url}/api/v1/billing/usage/events",
        params={
            "starting_on": (hour - timedelta(hours=1)).isoformat(),
            "ending_before": (hour + timedelta(hours=1)).isoformat(),
        },
        headers={"x-api-key": KEY},
    ).json()
    mine = [event for event in answer["data"] if event["training_run_id"] == policy.model_id]
    counts = {event["event_info"]["type"]: event["event_info"] for event in mine}
    assert counts["training"]["token_count"] == 8
    assert counts["sampling_prefill"]["token_count"] == 5
    assert counts["sampling_sample"]["token_count"] == 12
    assert counts["checkpoint"]["count"] == 1
    found = call(world.admin, hour - timedelta(hours=1), hour + timedelta(hours=1))
    of_session = [event for event in found.data if event.session_id == session_of(world)]
    assert {event.estimated_cost_usd or 0.0 for event in of_session} == {0.0}
    trained = [event.event_info for event in of_session if event.event_info.type == "training"]
    assert sum(info.token_count for info in trained) >= 8
    assert found.sessions[session_of(world)].user_metadata == {"who": "test"}
    assert call(world.rest, hour - timedelta(hours=3), hour - timedelta(hours=2)).data == []


@answers(tinker.RestClient, "get_current_checkpoint_storage_usage")
@answers(tinker.AdminClient, "get_current_checkpoint_storage_usage")
def storage(world: World, call: Call) -> None:
    def size(project: str) -> int:
        found = call(world.admin, project_id=project).data
        return found[0].size_bytes if found else 0

    before, policy = size("lab"), world.policy()
    path = policy.save_state(world.name()).result().path
    (listed,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
    assert size("lab") - before == listed.size_bytes
    world.rest.delete_checkpoint_from_tinker_path(path).result()
    assert size("lab") == before
    assert call(world.rest, "nobody").data == []


def test_json_of_the_trace_is_what_perfetto_reads(world: World) -> None:
    world.sampler().sample(PROMPT, 1, GREEDY).result()
    url = world.rest.export_session_trace(session_of(world)).result()
    trace = json.loads(httpx.get(url).text)
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert "sample" in {event["name"] for event in trace["traceEvents"]}

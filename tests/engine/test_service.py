"""The engine through the official SDK: what a notebook does, and what it does wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tests.conftest import KEY, start_engine

MODEL = "posttrain/tiny"
ADAM = types.AdamParams(learning_rate=1e-2)


def datum(tokens: list[int], **inputs: Any) -> types.Datum:
    every: Any = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)} | inputs
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=every)


def prompt(*tokens: int) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens))


def image() -> types.Datum:
    picture = types.ImageChunk(data=b"x", format="png", expected_tokens=1)
    inputs: Any = {"target_tokens": [1]}
    return types.Datum(model_input=types.ModelInput(chunks=[picture]), loss_fn_inputs=inputs)


DATA = [datum([1, 2, 3, 4, 5]), datum([9, 8, 7])]


@pytest.fixture
def policy(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(MODEL, rank=4, seed=1).result()


def losses(policy: tinker.TrainingClient, steps: int) -> list[float]:
    """Supervised steps, all submitted before the first result is awaited."""
    pending = []
    for _ in range(steps):
        pending.append(policy.forward_backward(DATA, "cross_entropy"))
        policy.optim_step(ADAM)
    return [future.result().metrics["loss:sum"] for future in pending]


def logprobs(policy: tinker.TrainingClient) -> np.ndarray:
    outputs = policy.forward(DATA, "cross_entropy").result().loss_fn_outputs
    return np.concatenate([output["logprobs"].to_numpy() for output in outputs])


def test_supervised_steps_learn(policy: tinker.TrainingClient) -> None:
    found = losses(policy, 10)
    assert found[-1] < 0.5 * found[0]
    assert found == sorted(found, reverse=True)


def test_info_and_tokenizers_work_offline_from_any_directory(
    service: tinker.ServiceClient,
    policy: tinker.TrainingClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    info = policy.get_info()
    assert (info.model_name, info.lora_rank, info.is_lora) == (MODEL, 4, True)
    path = policy.save_weights_for_sampler("tokenizer").result().path
    for client in (
        policy,
        policy.save_weights_and_get_sampling_client().result(),
        service.create_sampling_client(model_path=path).result(),
    ):
        tokenizer = client.get_tokenizer()
        assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
        chat = [{"role": "user", "content": "hi"}]
        assert tokenizer.apply_chat_template(chat, tokenize=False) == "user: hi<end>"


def test_policy_losses_on_fresh_samples(policy: tinker.TrainingClient) -> None:
    """On policy every ratio is 1, so the loss is minus the sum of the advantages."""
    sampler = policy.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=6, seed=1, stop=[])
    sequences = sampler.sample(prompt(1, 2), 4, params).result().sequences
    data = []
    for sequence, advantage in zip(sequences, (1.0, -1.0, 0.5, 2.0), strict=True):
        whole = [1, 2, *sequence.tokens]
        inputs: Any = {
            "target_tokens": whole[1:],
            "logprobs": [0.0, *(sequence.logprobs or [])],
            "advantages": [0.0] + [advantage] * 6,
        }
        data.append(types.Datum(model_input=prompt(*whole[:-1]), loss_fn_inputs=inputs))
    for name in ("importance_sampling", "ppo", "cispo"):
        output = policy.forward_backward(data, name).result()
        expected = -15.0
        if name == "cispo":
            expected = -sum(
                a * sum(s.logprobs or []) for s, a in zip(sequences, (1, -1, 0.5, 2), strict=True)
            )
        assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-3)
        assert output.loss_fn_outputs[0]["logprobs"].shape == [7]
    assert policy.optim_step(ADAM).result().metrics is not None


def test_custom_loss_has_the_gradient_of_its_own_formula(
    service: tinker.ServiceClient, policy: tinker.TrainingClient
) -> None:
    """Minus the sum of the log-probabilities, as a callable, trains as cross-entropy does."""

    def negative(data: list[types.Datum], found: list[torch.Tensor]) -> Any:
        return -sum((lp.sum() for lp in found), torch.zeros(())), {"answer": 42.0}

    other = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
    output = policy.forward_backward_custom(DATA, negative).result()
    plain = other.forward_backward(DATA, "cross_entropy").result()
    assert output.metrics["answer"] == 42.0
    assert output.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"], rel=1e-5)
    for client in (policy, other):
        client.optim_step(ADAM).result()
    np.testing.assert_allclose(logprobs(policy), logprobs(other), atol=1e-4)


def test_soft_targets_dense_and_sparse(policy: tinker.TrainingClient) -> None:
    """A mostly empty (N, K) tensor travels as compressed sparse rows; it means the same."""
    targets = torch.zeros(4, 30, dtype=torch.long)
    weights = torch.zeros(4, 30)
    targets[:, 0], weights[:, 0] = torch.tensor([2, 3, 4, 5]), 1.0
    sparse = datum([1, 2, 3, 4, 5], target_tokens=targets, weights=weights)
    assert sparse.loss_fn_inputs["weights"].sparse_crow_indices is not None
    plain = policy.forward([DATA[0]], "cross_entropy").result()
    output = policy.forward([sparse], "cross_entropy").result()
    assert output.loss_fn_outputs[0]["logprobs"].shape == [4, 30]
    assert output.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"], rel=1e-5)


def test_compute_logprobs_is_what_training_sees(policy: tinker.TrainingClient) -> None:
    losses(policy, 2)
    sampler = policy.save_weights_and_get_sampling_client().result()
    found = sampler.compute_logprobs(prompt(1, 2, 3, 4, 5)).result()
    assert found[0] is None
    np.testing.assert_allclose(np.array(found[1:], float), logprobs(policy)[:4], atol=1e-4)


def test_most_probable_tokens_make_soft_targets(policy: tinker.TrainingClient) -> None:
    """Distilling a model into itself from its whole distribution leaves nothing to learn."""
    sampler = policy.save_weights_and_get_sampling_client().result()
    answer = sampler.sample(
        prompt(1, 2, 3),
        1,
        types.SamplingParams(max_tokens=2, stop=[]),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=260,
        topk_sample_logprobs=2,
    ).result()
    rows = answer.topk_prompt_logprobs
    assert rows is not None
    assert rows[0] is None
    assert len(answer.sequences[0].topk_logprobs or []) == 2
    targets = [[token for token, _ in row or []] for row in rows[1:]]
    weights = [[float(np.exp(logprob)) for _, logprob in row or []] for row in rows[1:]]
    np.testing.assert_allclose(np.sum(weights, 1), 1, atol=1e-4)
    inputs: Any = {
        "target_tokens": torch.tensor(targets),
        "weights": torch.tensor(weights, dtype=torch.float32),
    }
    data = [types.Datum(model_input=prompt(1, 2), loss_fn_inputs=inputs)]
    policy.forward_backward(data, "cross_entropy").result()
    metrics = policy.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics
    assert metrics is not None
    assert metrics["grad_norm:mean"] < 1e-3


def test_a_sampler_keeps_the_weights_it_was_made_of(policy: tinker.TrainingClient) -> None:
    sampler = policy.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=8, temperature=0.0)
    before = sampler.sample(prompt(1, 2), 1, params).result().sequences[0].logprobs
    losses(policy, 3)
    assert sampler.sample(prompt(1, 2), 1, params).result().sequences[0].logprobs == before
    new = policy.save_weights_and_get_sampling_client().result()
    assert new.sample(prompt(1, 2), 1, params).result().sequences[0].logprobs != before


def test_same_seed_same_tokens_through_the_api(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    params = types.SamplingParams(max_tokens=20, seed=5, temperature=3.0, stop=[])
    alone = sampler.sample(prompt(1, 2), 2, params).result()
    crowd = [sampler.sample(prompt(n), 3, types.SamplingParams(max_tokens=n)) for n in range(1, 30)]
    among = sampler.sample(prompt(1, 2), 2, params).result()
    assert [s.tokens for s in among.sequences] == [s.tokens for s in alone.sequences]
    assert all(len(future.result().sequences) == 3 for future in crowd)
    assert {s.stop_reason for s in alone.sequences} == {"length"}


def test_concurrent_samples_are_batched(service: tinker.ServiceClient, engine_url: str) -> None:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    params = types.SamplingParams(max_tokens=60, stop=[], temperature=3.0)
    futures = [sampler.sample(prompt(n + 1, n + 2), 1, params) for n in range(64)]
    assert all(len(future.result().sequences[0].tokens) == 60 for future in futures)
    assert httpx.get(f"{engine_url}/healthz").json()["largest_batch"] >= 16


def test_resuming_from_a_checkpoint_gives_the_same_bits(service: tinker.ServiceClient) -> None:
    straight = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
    losses(straight, 6)
    first = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
    losses(first, 3)
    path = first.save_state("half").result().path
    second = service.create_training_client_from_state_with_optimizer(path).result()
    assert second.get_info().lora_rank == 4
    losses(second, 3)
    assert np.array_equal(logprobs(straight), logprobs(second))
    without = service.create_training_client_from_state(path).result()
    losses(without, 3)
    assert not np.array_equal(logprobs(straight), logprobs(without))


def test_loading_into_a_living_client(policy: tinker.TrainingClient) -> None:
    start = policy.save_state("start").result().path
    before = logprobs(policy)
    losses(policy, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy.load_state(start).result()
        assert np.array_equal(logprobs(policy), before)
        policy.load_state_with_optimizer(start).result()
    assert np.array_equal(logprobs(policy), before)


def test_async_calls(service: tinker.ServiceClient) -> None:
    async def all_of_it() -> int:
        policy = await service.create_lora_training_client(MODEL, rank=2)
        forward = policy.forward_backward(DATA, "cross_entropy")
        step = policy.optim_step(ADAM)
        await forward
        await step
        sampler = await service.create_sampling_client(
            model_path=(await policy.save_weights_for_sampler("async")).path
        )
        params = types.SamplingParams(max_tokens=4, stop=[])
        answers = await asyncio.gather(*(sampler.sample(prompt(n), 2, params) for n in (1, 2, 3)))
        assert await sampler.compute_logprobs(prompt(1, 2))
        return sum(len(s.tokens) for answer in answers for s in answer.sequences)

    assert asyncio.run(all_of_it()) == 24


Act = Callable[[tinker.ServiceClient, tinker.TrainingClient], Any]
MISTAKES: list[tuple[Act, str]] = [
    (lambda s, p: s.create_lora_training_client("nope").result(), "known: posttrain/tiny"),
    (lambda s, p: s.create_sampling_client(base_model="nope").result(), "known: posttrain/tiny"),
    (lambda s, p: s.create_lora_training_client(MODEL, rank=33).result(), "this model's 32"),
    (
        lambda s, p: s.create_lora_training_client(
            MODEL, optimizer=types.DimuonOptimizerConfig()
        ).result(),
        "'dimuon' is not supported",
    ),
    (
        lambda s, p: p.forward_backward([*DATA, datum([1, 2], weights=[1.0] * 3)], "cross_entropy"),
        "datum 2: weights has shape",
    ),
    (lambda s, p: p.forward_backward([datum([1, 999])], "cross_entropy"), "datum 0: target_tokens"),
    (lambda s, p: p.forward_backward(DATA, "ppo"), "datum 0: loss ppo needs the input 'logprobs'"),
    (lambda s, p: p.optim_step(types.AdamParams(learning_rate=-1.0)), "not negative"),
    (lambda s, p: p.save_state("a/../b"), "cannot name a checkpoint"),
    (lambda s, p: s.create_training_client_from_state("tinker://x/weights/y"), "checkpoint path"),
    (
        lambda s, p: s.create_training_client_from_state(f"tinker://{p.model_id}/weights/none"),
        "does not exist",
    ),
    (
        lambda s, p: (
            p.save_weights_and_get_sampling_client()
            .result()
            .sample(prompt(), 1, types.SamplingParams())
        ),
        "the prompt is empty",
    ),
    (
        lambda s, p: (
            s.create_sampling_client(base_model=MODEL, record_stability_info=True)
            .result()
            .sample(prompt(1), 1, types.SamplingParams())
        ),
        r"record_stability_info .* is not supported",
    ),
    (lambda s, p: p.forward_backward([image()], "cross_entropy"), "datum 0: an image is not supp"),
    (lambda s, p: p.forward_backward(DATA, "stable_reinforce"), "unknown loss 'stable_reinforce'"),
    (
        lambda s, p: p.save_weights_external("secret", age_encryption_recipients=["age1x"]),
        "age_encryption_recipients",
    ),
]


@pytest.mark.parametrize(("act", "complaint"), MISTAKES)
def test_mistakes_are_told_at_once_and_the_client_goes_on(
    service: tinker.ServiceClient, policy: tinker.TrainingClient, act: Act, complaint: str
) -> None:
    start = time.monotonic()
    with pytest.raises((tinker.RequestFailedError, tinker.BadRequestError), match=complaint):
        act(service, policy).result()
    assert time.monotonic() - start < 3
    losses(policy, 1)


def test_a_refused_datum_leaves_no_trace(service: tinker.ServiceClient) -> None:
    one, two = (
        service.create_lora_training_client(MODEL, rank=4, seed=1).result() for _ in range(2)
    )
    with pytest.raises(tinker.RequestFailedError, match="datum 1"):
        one.forward_backward([DATA[0], datum([1, 999])], "cross_entropy").result()
    assert losses(one, 2) == losses(two, 2)


def test_rest_client_reads_what_exists(
    engine_url: str, service: tinker.ServiceClient, policy: tinker.TrainingClient
) -> None:
    rest = tinker.RestClient(base_url=engine_url, api_key=KEY)
    models = rest.get_server_capabilities().result().supported_models
    assert [(m.model_name, m.max_context_length) for m in models] == [(MODEL, 128)]
    path = policy.save_state("rest", user_metadata={"a": "b"}).result().path
    run = rest.get_training_run(policy.model_id).result()
    assert (run.base_model, run.lora_rank) == (MODEL, 4)
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert policy.model_id in [
        r.training_run_id for r in rest.list_training_runs().result().training_runs
    ]
    assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 4
    (checkpoint,) = rest.list_checkpoints(policy.model_id).result().checkpoints
    assert checkpoint.user_metadata == {"a": "b"}
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(policy.model_id).result().checkpoints == []


def test_checkpoints_survive_kill_9_in_another_process(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Acknowledged is durable: the engine is killed the moment the path has arrived."""
    process, url = start_engine(tiny_model_dir, tmp_path)
    try:
        first = tinker.ServiceClient(base_url=url, api_key=KEY)
        policy = first.create_lora_training_client(MODEL, rank=4, seed=1).result()
        losses(policy, 3)
        expected = logprobs(policy)
        path = policy.save_state("last").result().path
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    process, url = start_engine(tiny_model_dir, tmp_path)
    try:
        second = tinker.ServiceClient(base_url=url, api_key=KEY)
        resumed = second.create_training_client_from_state_with_optimizer(path).result()
        assert np.array_equal(logprobs(resumed), expected)
        losses(resumed, 1)
    finally:
        process.kill()
        process.wait()


def test_the_engine_ends_when_its_parent_is_killed(tiny_model_dir: Path, tmp_path: Path) -> None:
    script = f"""
import os, pathlib, time
from tests.conftest import start_engine
process, url = start_engine(
    pathlib.Path({str(tiny_model_dir)!r}), pathlib.Path({str(tmp_path)!r}),
    "--parent", str(os.getpid()))
print(process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine = int(parent.stdout.readline())
    os.kill(engine, 0)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    while time.monotonic() < end and Path(f"/proc/{engine}").exists():
        if "Z" in Path(f"/proc/{engine}/stat").read_text().split()[2]:
            break  # ended; only not yet collected by the system
        time.sleep(0.1)
    else:
        assert not Path(f"/proc/{engine}").exists(), "the engine outlived its parent"

"""What each method of SamplingClient must answer."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import numpy as np
import tinker
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import KEY
from tests.engine.calls.world import (
    GREEDY,
    MODEL,
    PROMPT,
    TOKENS,
    Call,
    World,
    answers,
)


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

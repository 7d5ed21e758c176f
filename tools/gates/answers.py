"""Sampled answers of a base model to questions in the form that it was pretrained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tinker

from posttrain.datums import plain_prompt
from posttrain.renderers import PLAIN_STOP
from posttrain.requests import item_seed, results


def answers(
    sampler: tinker.SamplingClient,
    questions: Sequence[str],
    k: int,
    *,
    seed: int = 0,
    max_tokens: int,
) -> list[list[str]]:
    """`k` answers to each question at temperature 1, without the space around them."""
    tokenizer = sampler.get_tokenizer()
    prompts = [plain_prompt(tokenizer, question) for question in questions]
    asked = ask(sampler, prompts, k, stop=PLAIN_STOP, seed=seed, max_tokens=max_tokens)
    return [[text.strip() for text in texts] for texts in asked]


def ask(
    sampler: tinker.SamplingClient,
    prompts: Sequence[list[int]],
    k: int,
    *,
    stop: Sequence[str],
    seed: int,
    max_tokens: int,
) -> list[list[str]]:
    """`k` completions of each prompt at temperature 1, as they are, stop sequence included."""
    tokenizer = sampler.get_tokenizer()

    def sample(i: int, prompt: list[int]) -> Callable[[], Any]:
        params = tinker.SamplingParams(
            max_tokens=max_tokens, temperature=1.0, stop=list(stop), seed=item_seed(seed, i)
        )
        tokens = tinker.ModelInput.from_ints(prompt)
        return partial(sampler.sample, tokens, num_samples=k, sampling_params=params)

    responses = results(sample(i, prompt) for i, prompt in enumerate(prompts))
    return [
        [str(tokenizer.decode(s.tokens, skip_special_tokens=True)) for s in response.sequences]
        for response in responses
    ]

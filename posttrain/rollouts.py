"""Sampling completions from a policy, in groups that share a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tinker
from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import chat_prompt
from posttrain.tasks.problem import Item


@dataclass(frozen=True)
class Rollout:
    """One sampled completion.

    `logprobs[t]` is what the sampler gave `tokens[t]`, in nats at temperature 1. `text` is the
    completion without special tokens. `finished` says that it ended by itself, not at the limit.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    finished: bool


def sample_groups(
    sampler: tinker.SamplingClient,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    group_size: int,
    *,
    max_tokens: int,
    seed: int,
) -> list[list[Rollout]]:
    """`group_size` completions of each prompt at temperature 1, all requested at once.

    No top-k or top-p: truncation would make the sampler another distribution than the one whose
    log-probabilities the loss compares with.
    """
    futures = [
        sampler.sample(
            tinker.ModelInput.from_ints(prompt),
            num_samples=group_size,
            sampling_params=tinker.SamplingParams(
                max_tokens=max_tokens, seed=seed * 1_000_003 + i, temperature=1.0
            ),
        )
        for i, prompt in enumerate(prompts)
    ]
    return [
        [
            Rollout(
                prompt=prompt,
                tokens=list(sequence.tokens),
                logprobs=list(sequence.logprobs or []),
                text=str(tokenizer.decode(sequence.tokens, skip_special_tokens=True)),
                finished=sequence.stop_reason == "stop",
            )
            for sequence in future.result().sequences
        ]
        for prompt, future in zip(prompts, futures, strict=True)
    ]


def sample_answers(
    sampler: tinker.SamplingClient,
    items: Sequence[Item],
    answers: int,
    *,
    max_tokens: int,
    seed: int,
) -> list[list[Rollout]]:
    """`sample_groups` of `answers` to the question of each item, in the model's chat format."""
    tokenizer = sampler.get_tokenizer()
    prompts = [chat_prompt(tokenizer, item.question) for item in items]
    return sample_groups(sampler, tokenizer, prompts, answers, max_tokens=max_tokens, seed=seed)


def kl_from(reference: tinker.SamplingClient, rollouts: Sequence[Rollout]) -> float:
    """KL(policy || reference) in nats per completion, from the policy's own samples.

    The Monte Carlo mean of sum_t log p(y_t) - log p_ref(y_t): unbiased, and noisy in proportion
    to its own size.
    """
    futures = [
        reference.compute_logprobs(tinker.ModelInput.from_ints([*r.prompt, *r.tokens]))
        for r in rollouts
    ]
    gaps = []
    for rollout, future in zip(rollouts, futures, strict=True):
        scores = future.result()[len(rollout.prompt) :]
        gaps.append(sum(rollout.logprobs) - sum(s for s in scores if s is not None))
    return sum(gaps) / len(gaps)

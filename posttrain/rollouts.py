"""Sampling completions from a policy, in groups that share a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tinker
from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.evals import Stop
from posttrain.scoring import token_logprobs


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
    stop: Stop = None,
) -> list[list[Rollout]]:
    """`group_size` completions of each prompt at temperature 1, all requested at once.

    `stop` None means that the model's own end token ends a completion. No top-k or top-p:
    truncation would make the sampler another distribution than the one whose log-probabilities
    the loss compares with.
    """
    futures = [
        sampler.sample(
            tinker.ModelInput.from_ints(prompt),
            num_samples=group_size,
            sampling_params=tinker.SamplingParams(
                max_tokens=max_tokens, seed=seed * 1_000_003 + i, temperature=1.0, stop=stop
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


def kl_from(reference: tinker.SamplingClient, rollouts: Sequence[Rollout]) -> float:
    """KL(policy || reference) in nats per completion, from the policy's own samples.

    The Monte Carlo mean of sum_t log p(y_t) - log p_ref(y_t): unbiased, and noisy in proportion
    to its own size.
    """
    scores_D = token_logprobs(reference, [(r.prompt, r.tokens) for r in rollouts])
    gaps = [
        sum(rollout.logprobs) - scores.double().sum().item()
        for rollout, scores in zip(rollouts, scores_D, strict=True)
    ]
    return sum(gaps) / len(gaps)

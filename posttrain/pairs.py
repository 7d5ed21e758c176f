"""Pairs of a policy's own answers, labelled by somebody who compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import tinker
from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import chat_completion, chat_prompt
from posttrain.rollouts import sample_answers
from posttrain.tasks.problem import Item, Preference

# (item, a, b, seed) to whether a is preferred to b; None if whoever compares cannot tell.
Label = Callable[[Any, str, str, int], bool | None]

ASKED_AT_ONCE = 32  # pairs; whoever compares may be a model behind a network


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs, and what became of the other items."""

    preferences: list[Preference]
    sampled_tokens: int  # of all answers, for the ledger
    truncated: int  # items left out because an answer was cut off at max_tokens
    equal: int  # items left out because both answers are the same
    undecided: int  # items left out because nobody could tell


def sample_pairs(
    sampler: tinker.SamplingClient,
    items: Sequence[Item],
    label: Label,
    *,
    max_tokens: int,
    seed: int = 0,
) -> Pairs:
    """Two answers to each item, sampled at temperature 1, and which of them `label` prefers.

    On-policy pairs, if the policy that will be trained is the one that samples. An answer that was
    cut off is no answer: to learn from it would teach to stop, or not to stop, in the middle.

    Raises:
        ValueError: there is no item, or none of them gives a pair.
    """
    if not items:
        raise ValueError("there are no items to answer")
    groups = sample_answers(sampler, items, 2, max_tokens=max_tokens, seed=seed)
    whole = [all(rollout.finished for rollout in group) for group in groups]
    texts = [[rollout.text.strip() for rollout in group] for group in groups]
    usable = [
        (item, a, b)
        for item, finished, (a, b) in zip(items, whole, texts, strict=True)
        if finished and a != b
    ]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        futures = [pool.submit(label, item, a, b, seed) for item, a, b in usable]
        labels = [future.result() for future in futures]
    preferences = [
        Preference(item.question, a, b) if preferred else Preference(item.question, b, a)
        for (item, a, b), preferred in zip(usable, labels, strict=True)
        if preferred is not None
    ]
    truncated = whole.count(False)
    found = Pairs(
        preferences=preferences,
        sampled_tokens=sum(len(rollout.tokens) for group in groups for rollout in group),
        truncated=truncated,
        equal=len(items) - truncated - len(usable),
        undecided=labels.count(None),
    )
    if not preferences:
        raise ValueError(
            f"{len(items)} items and no pair: {truncated} with an answer cut off at {max_tokens} "
            f"tokens, {found.equal} with equal answers, {found.undecided} undecided"
        )
    return found


def fitting(
    tokenizer: Tokenizer, preferences: Sequence[Preference], max_tokens: int
) -> list[Preference]:
    """Those whose question with either answer has at most `max_tokens` tokens.

    Raises:
        ValueError: there is none.
    """

    def tokens(shown: Preference, answer: str) -> int:
        completion = chat_completion(tokenizer, shown.question, answer)
        return len(chat_prompt(tokenizer, shown.question)) + len(completion)

    kept = [
        shown
        for shown in preferences
        if max(tokens(shown, shown.chosen), tokens(shown, shown.rejected)) <= max_tokens
    ]
    if not kept:
        raise ValueError(
            f"none of {len(preferences)} preferences fits into max_tokens={max_tokens}"
        )
    return kept

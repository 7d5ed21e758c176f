"""One-token verdicts: a language model is asked a question with two answers, and which of them it
tends to is read from the log-probabilities of one token.

The two answers are tokenised as the assistant would give them, and what they begin with in common
goes into the prompt. The first token that differs decides. Where a reward model with a scalar head
has a score, a language model has the gap log p(first answer) - log p(second answer) at that token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tinker
import torch
from tinker import TensorData

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import chat_completion, chat_prompt
from posttrain.scoring import logprobs_of, positions

READABLE = 0.5  # least probability of the two answers together; below it, a model says other things


@dataclass(frozen=True)
class Question:
    """What a model reads up to the deciding token, and the two tokens that decide."""

    prompt: list[int]
    first: int  # the token of the first answer
    second: int


@dataclass(frozen=True)
class Verdict:
    """Log-probabilities of the two deciding tokens, in nats."""

    first: float
    second: float

    @property
    def gap(self) -> float:
        """log p(first) - log p(second): the score, in nats."""
        return self.first - self.second

    @property
    def probability(self) -> float:
        """Of the first answer where only the two are allowed, sigmoid(gap)."""
        return 0.5 * (1 + math.tanh(self.gap / 2))  # does not overflow

    @property
    def readable(self) -> bool:
        """Whether the model would mostly give one of the two answers."""
        return math.exp(self.first) + math.exp(self.second) >= READABLE


def question(tokenizer: Tokenizer, text: str, answers: tuple[str, str]) -> Question:
    """`text` as a user's question in the model's chat format, to be answered by one of `answers`.

    Raises:
        ValueError: the two answers are the same tokens.
    """
    first, second = (chat_completion(tokenizer, text, answer) for answer in answers)
    parts = [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if not parts:  # both end with the end token, so neither is the beginning of the other
        raise ValueError(f"the two answers {answers[0]!r} and {answers[1]!r} are the same tokens")
    at = parts[0]
    return Question([*chat_prompt(tokenizer, text), *first[:at]], first[at], second[at])


def verdict_datum(asked: Question) -> tinker.Datum:
    """For a custom loss: its last row of log-probabilities, (2,), is that of the two answers.

    The rows before it, about tokens of the prompt, are there because targets have one shape.
    """
    targets = torch.zeros(len(asked.prompt), 2, dtype=torch.int64)
    targets[-1] = torch.tensor([asked.first, asked.second])
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(asked.prompt),
        loss_fn_inputs={"target_tokens": TensorData.from_torch(targets)},
    )


def verdicts(
    judge: tinker.SamplingClient, texts: Sequence[str], answers: tuple[str, str]
) -> tuple[list[Verdict], int]:
    """What `judge` tends to answer to each text, all asked at once; equal texts are asked once.

    Returns:
        The verdicts in the order of the texts, and how many positions the judge computed: for the
        ledger.

    Raises:
        ValueError: the two answers are the same tokens.
    """
    tokenizer = judge.get_tokenizer()
    asked = {text: question(tokenizer, text, answers) for text in dict.fromkeys(texts)}
    answered = [(one.prompt, [one.first]) for one in asked.values()]
    scores = logprobs_of(
        judge, answered, [torch.tensor([[one.first, one.second]]) for one in asked.values()]
    )
    pairs = [Verdict(*scores_1_2[0].tolist()) for scores_1_2 in scores]
    found = dict(zip(asked, pairs, strict=True))
    return [found[text] for text in texts], positions(answered)

"""From conversations to tokens, and from tokens to Tinker datums.

Tinker trains on shifted pairs: position i of `model_input` predicts entry i of `target_tokens`.
Every server loss is a sum over tokens and datums, so normalisation is written here, into the
weights and advantages.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import tinker
import torch
from tinker import TensorData
from torch import Tensor

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.renderers import one_bos, renderer_for, tokens_of, user


def chat_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The tokens of a conversation in which the user has asked and the assistant is to answer."""
    return one_bos(tokenizer, renderer_for(tokenizer).render([user(question)]))


def plain_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The form in which a base model without a chat format meets questions."""
    return tokens_of(tokenizer, f"Question: {question}\nAnswer:")


def chat_completion(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    """The tokens that the assistant adds to `chat_prompt`, its end token included.

    Prompt and completion are tokenised apart, as they are when the model samples, so a training
    example holds the very tokens that sampling would produce.

    Raises:
        ValueError: the chat format rewrites the prompt once the answer is known, or does not
            close an answer with a special token.
    """
    return renderer_for(tokenizer).complete(question, answer)


def chat_turns(
    tokenizer: Tokenizer, question: str, turns: Sequence[str]
) -> tuple[list[int], list[bool]]:
    """`chat_completion` of an answer that the assistant and a tool wrote in turns.

    Each turn is tokenised apart, as `posttrain.rollouts.converse` meets them.

    Returns:
        The tokens, and which of them are the assistant's own: those of turns 0, 2, 4, ...

    Raises:
        ValueError: as in `chat_completion`; the last turn is not the assistant's; or the template
            changes what was said.
    """
    if len(turns) % 2 == 0:
        raise ValueError(f"the assistant has the first turn and the last, so not {len(turns)}")
    said = "".join(turns)
    whole = chat_completion(tokenizer, question, said)
    if len(turns) == 1:
        return whole, [True] * len(whole)
    before, found, after = str(tokenizer.decode(whole)).partition(said)
    if not found:
        raise ValueError("the chat template changes what was said, so turns cannot be told")
    pieces = [before + turns[0], *turns[1:-1], turns[-1] + after]
    parts = [tokens_of(tokenizer, piece) for piece in pieces]
    own = [i % 2 == 0 for i, part in enumerate(parts) for _ in part]
    return [token for part in parts for token in part], own


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> None:
    """Nothing, where every token id means the same to `a` and to `b`, the end token included.

    Log-probabilities of two models can be compared token by token only then. How a conversation
    is laid out is not compared: two chat templates may differ and still write the same prompt.

    Raises:
        ValueError: they differ; it names the first token that does.
    """
    left, right = a.get_vocab(), b.get_vocab()
    if left != right:
        odd = {token for token, _ in left.items() ^ right.items()}
        first = min(odd, key=lambda token: (left.get(token, right.get(token)), token))
        raise ValueError(
            f"the two models have different tokenizers, {len(left)} and {len(right)} tokens: "
            f"{first!r} is {left.get(first, 'unknown')} in one and {right.get(first, 'unknown')} "
            "in the other"
        )
    if a.eos_token_id != b.eos_token_id:
        raise ValueError(
            f"the two models end a text differently: with {a.eos_token!r} and {b.eos_token!r}"
        )


def supervised_datum(
    prompt: Sequence[int], completion: Sequence[int], own: Sequence[bool] | None = None
) -> tinker.Datum:
    """Cross-entropy on the completion alone: weight 0 on the prompt, 1 on what is to be learned.

    `own` says which tokens of the completion are; by default all, and a tool's never.
    """
    tokens = [*prompt, *completion]
    learned = [1.0] * len(completion) if own is None else [float(mine) for mine in own]
    weights = [0.0] * (len(prompt) - 1) + learned
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": TensorData.from_torch(torch.tensor(tokens[1:])),
            "weights": TensorData.from_torch(torch.tensor(weights)),
        },
    )


def token_mean(data_D: Sequence[tinker.Datum]) -> list[tinker.Datum]:
    """Divide all weights by their sum, so that the summed loss is nats per trained token.

    One denominator for the whole batch: a mean of per-example means would weigh the tokens of
    short examples more.
    """
    total = sum(float(d.loss_fn_inputs["weights"].to_torch().sum()) for d in data_D)
    return [
        replace(
            datum,
            loss_fn_inputs={
                **datum.loss_fn_inputs,
                "weights": TensorData.from_torch(
                    datum.loss_fn_inputs["weights"].to_torch() / total
                ),
            },
        )
        for datum in data_D
    ]


def policy_datum(
    prompt: Sequence[int],
    completion: Sequence[int],
    logprobs: Sequence[float],
    advantage: float | Sequence[float],
) -> tinker.Datum:
    """One sampled completion for a policy-gradient loss.

    Args:
        logprobs: what the sampler gave each completion token, in nats.
        advantage: one for all completion tokens, or one of each; the prompt gets 0 of both.
    """
    tokens, before = [*prompt, *completion], len(prompt) - 1
    each = [advantage] * len(completion) if isinstance(advantage, int | float) else advantage
    q = torch.tensor([0.0] * before + list(logprobs))
    advantages = torch.tensor([0.0] * before + list(each))
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": TensorData.from_torch(torch.tensor(tokens[1:])),
            "logprobs": TensorData.from_torch(q),
            "advantages": TensorData.from_torch(advantages),
        },
    )


def with_sequence_mask(datum: tinker.Datum) -> tinker.Datum:
    """The datum for the loss `gspo`, which wants to know the tokens whose mean ratio is clipped:
    those with an advantage."""
    mask = (datum.loss_fn_inputs["advantages"].to_torch() != 0).float()
    inputs = {**datum.loss_fn_inputs, "sequence_ratio_mask": TensorData.from_torch(mask)}
    return replace(datum, loss_fn_inputs=inputs)


def soft_datum(
    prompt: Sequence[int], completion: Sequence[int], tokens_T_K: Tensor, weights_T_K: Tensor
) -> tinker.Datum:
    """K targets at each of the T places of a completion: soft targets of cross-entropy.

    Row t stands where the model predicts completion token t; the target need not be that token.
    Weights may be of any sign. The prompt gets weight 0. Raises ValueError unless both are (T, K).
    """
    T, K = tokens_T_K.shape
    if len(completion) != T or weights_T_K.shape != (T, K):
        raise ValueError(
            f"targets {tuple(tokens_T_K.shape)} and weights {tuple(weights_T_K.shape)} for a "
            f"completion of {len(completion)} tokens"
        )
    nothing = torch.zeros(len(prompt) - 1, K)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints([*prompt, *completion[:-1]]),
        loss_fn_inputs={
            "target_tokens": TensorData.from_torch(torch.cat([nothing.long(), tokens_T_K.long()])),
            "weights": TensorData.from_torch(torch.cat([nothing, weights_T_K.float()])),
        },
    )


def batch_indices(n: int, size: int, seed: int, step: int) -> list[int]:
    """Which `size` of `n` items step number `step` trains on: reshuffled epochs, without state.

    The answer depends on its arguments alone, so an interrupted run continues with the batch
    that it would have seen.
    """
    if n < 1:
        raise ValueError("there is nothing to train on: the dataset is empty")
    picked: list[int] = []
    epoch, offset = divmod(step * size, n)
    while len(picked) < size:
        order = list(range(n))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        picked += order[offset : offset + size - len(picked)]
        epoch, offset = epoch + 1, 0
    return picked

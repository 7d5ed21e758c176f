"""Shift, mask, normalisation and order: the places where training code goes wrong silently."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from posttrain.connect import shipped_models
from posttrain.datums import (
    batch_indices,
    chat_completion,
    chat_prompt,
    plain_prompt,
    policy_datum,
    same_tokenizer,
    soft_datum,
    supervised_datum,
    token_mean,
)

tokens = st.lists(st.integers(0, 400), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(shipped_models()["posttrain/base"])


def arrays(datum, name: str) -> list[float]:  # type: ignore[no-untyped-def]
    return datum.loss_fn_inputs[name].to_torch().tolist()


@given(tokens, tokens)
def test_every_position_predicts_the_next_token(prompt: list[int], answer: list[int]) -> None:
    datum = supervised_datum(prompt, answer)
    inputs, targets = datum.model_input.to_ints(), arrays(datum, "target_tokens")
    assert inputs[1:] == targets[:-1]
    trained = [t for t, w in zip(targets, arrays(datum, "weights"), strict=True) if w]
    assert trained == answer


def test_policy_datum_by_hand() -> None:
    datum = policy_datum([7, 8, 9], [4, 5], [-0.5, -2.0], 0.25)
    assert datum.model_input.to_ints() == [7, 8, 9, 4]
    assert arrays(datum, "target_tokens") == [8, 9, 4, 5]
    assert arrays(datum, "logprobs") == [0.0, 0.0, -0.5, -2.0]
    assert arrays(datum, "advantages") == [0.0, 0.0, 0.25, 0.25]
    each = policy_datum([7, 8, 9], [4, 5], [-0.5, -2.0], [0.25, -1.0])
    assert arrays(each, "advantages") == [0.0, 0.0, 0.25, -1.0]


def test_soft_datum_by_hand() -> None:
    """Row t of the targets stands at the input before completion token t."""
    targets, weights = torch.tensor([[4, 6], [1, 5]]), torch.tensor([[0.75, 0.25], [1.0, -0.5]])
    datum = soft_datum([7, 8, 9], [4, 5], targets, weights)
    assert datum.model_input.to_ints() == [7, 8, 9, 4]
    assert arrays(datum, "target_tokens") == [[0, 0], [0, 0], [4, 6], [1, 5]]
    assert arrays(datum, "weights") == [[0, 0], [0, 0], [0.75, 0.25], [1.0, -0.5]]
    with pytest.raises(ValueError, match=r"targets \(2, 2\) .* for a completion of 3 tokens"):
        soft_datum([7], [4, 5, 6], targets, weights)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6))
def test_one_denominator_for_the_whole_batch(pairs: list[tuple[list[int], list[int]]]) -> None:
    batch = token_mean([supervised_datum(p, a) for p, a in pairs])
    weights = torch.cat([d.loss_fn_inputs["weights"].to_torch() for d in batch])
    answer_tokens = sum(len(a) for _, a in pairs)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert weights[weights > 0].tolist() == pytest.approx([1 / answer_tokens] * answer_tokens)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_batches_go_through_the_data_once_an_epoch(n: int, size: int, seed: int) -> None:
    seen = [i for step in range(n) for i in batch_indices(n, size, seed, step)]
    assert len(seen) == n * size
    assert all(seen.count(i) == size for i in range(n))  # n batches are `size` whole epochs


def test_an_empty_dataset_is_an_error() -> None:
    with pytest.raises(ValueError, match="dataset is empty"):
        batch_indices(0, 4, 0, 0)


def test_training_tokens_are_those_of_a_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    question, answer = "Compute 3+4.", "3+4=7. The answer is 7."
    prompt = chat_prompt(tokenizer, question)
    completion = chat_completion(tokenizer, question, answer)
    assert tokenizer.decode(prompt + completion) == (
        "<|user|> Compute 3+4.<|end|><|assistant|> 3+4=7. The answer is 7.<|end|>"
    )
    assert completion.count(tokenizer.eos_token_id) == 1
    assert completion[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(plain_prompt(tokenizer, "Hi")) == "Question: Hi\nAnswer:"


def test_a_template_that_rewrites_history_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|end|>")
    tokenizer.chat_template = "{{ messages | length }}{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="changes the prompt"):
        chat_completion(tokenizer, "a", "b")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"does not end an answer with '<\|end\|>'"):
        chat_completion(tokenizer, "a", "b")


def test_a_tokenizer_is_the_same_as_itself_and_as_its_copy(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    same_tokenizer(tokenizer, tokenizer)
    same_tokenizer(
        tokenizer, PreTrainedTokenizerFast.from_pretrained(shipped_models()["posttrain/base"])
    )


def test_other_tokenizers_are_refused_by_the_token_that_differs(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    more = PreTrainedTokenizerFast.from_pretrained(shipped_models()["posttrain/base"])
    more.add_tokens(["<|new|>"])
    size = len(tokenizer.get_vocab())
    message = f"{size} and {size + 1} tokens: '<|new|>' is unknown in one and {size} in the other"
    with pytest.raises(ValueError, match="different tokenizers") as error:
        same_tokenizer(tokenizer, more)
    assert message in str(error.value)
    other_end = PreTrainedTokenizerFast.from_pretrained(shipped_models()["posttrain/base"])
    other_end.eos_token = "<|endoftext|>"
    with pytest.raises(ValueError, match=r"end a text differently: with '<\|end\|>' and"):
        same_tokenizer(tokenizer, other_end)

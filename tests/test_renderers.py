"""Conversations in tokens: appended only, one BOS, and the text that the template itself writes."""

import itertools
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import tinker
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from posttrain.connect import shipped_models
from posttrain.datums import chat_completion, chat_prompt
from posttrain.renderers import (
    Message,
    Renderer,
    assistant,
    one_bos,
    plain_renderer,
    renderer_for,
    template_text,
    user,
)

# The published templates, without system prompts and tools.
LLAMA_3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{% set text = '<think>\n\n</think>\n\n' + text %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = {
    "llama": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}


def bytes_with(special: Sequence[str], template: str, **named: str) -> PreTrainedTokenizerFast:
    """Every byte is a token; and these."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if "bos_token" in named:  # as Llama's does: put before every text unless told otherwise
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(special),
        chat_template=template,
        **named,
    )


def tokenizer_named(name: str) -> PreTrainedTokenizerFast:
    if name == "shipped":
        return PreTrainedTokenizerFast.from_pretrained(shipped_models()["posttrain/base"])
    if name == "llama":
        ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        return bytes_with(SPECIAL["llama"], LLAMA_3, **ends)
    # A base model's tokenizer: its end of sequence is not what closes a turn.
    return bytes_with(SPECIAL["qwen"], QWEN_3, eos_token="<|endoftext|>")


NAMES = ("shipped", "llama", "qwen")
RENDERERS = {name: renderer_for(tokenizer_named(name)) for name in NAMES}
PLAIN = plain_renderer(tokenizer_named("shipped"))

words = st.text("ab Z09.,?!<>|\n\té✓", min_size=1, max_size=12).map(str.strip).filter(bool)
conversations = st.lists(st.tuples(words, words), min_size=1, max_size=4)


def sampled(renderer: Renderer, question: str, answer: str) -> list[int]:
    """The answer as a model that learnt the format would sample it."""
    return renderer.complete(question, answer)


def carried_on(renderer: Renderer, turns: Sequence[tuple[str, str]]) -> list[list[int]]:
    """The prompts of a conversation, one for each question."""
    prompts: list[list[int]] = []
    for i, (question, _) in enumerate(turns):
        if i == 0:
            prompts.append(renderer.prompt(question))
        else:
            said = [*prompts[-1], *sampled(renderer, *turns[i - 1])]
            prompts.append(renderer.extend(said, question))
    return prompts


def messages_of(turns: Sequence[tuple[str, str]]) -> list[Message]:
    return [m for question, answer in turns for m in (user(question), assistant(answer))]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(turns=conversations)
def test_a_conversation_is_what_the_template_writes_and_only_grows(
    name: str, turns: list[tuple[str, str]]
) -> None:
    renderer = RENDERERS[name]
    prompts = carried_on(renderer, turns)
    for i, (before, after) in enumerate(itertools.pairwise(prompts)):
        answer = sampled(renderer, *turns[i])
        assert after[: len(before) + len(answer)] == [*before, *answer]
    if name == "qwen":  # appended answers keep what the template would drop: the empty thought
        told = renderer.tokenizer.decode(prompts[-1]).replace("<think>\n\n</think>\n\n", "")
    else:
        told = renderer.tokenizer.decode(prompts[-1])
    asked = messages_of(turns)[:-1]
    assert told == template_text(renderer.tokenizer, asked, answering=True)


@settings(max_examples=25)
@given(turns=conversations)
def test_there_is_one_bos(turns: list[tuple[str, str]]) -> None:
    for prompt in carried_on(RENDERERS["llama"], turns):
        bos = RENDERERS["llama"].tokenizer.bos_token_id
        assert prompt[0] == bos
        assert prompt.count(bos) == 1


def test_a_bos_that_the_template_forgets_is_added_and_a_second_one_refused() -> None:
    forgets = tokenizer_named("llama")
    forgets.chat_template = LLAMA_3.replace("bos_token + text", "text")
    assert chat_prompt(forgets, "a") == chat_prompt(tokenizer_named("llama"), "a")
    twice = tokenizer_named("llama")
    twice.chat_template = LLAMA_3.replace("bos_token + text", "bos_token + bos_token + text")
    with pytest.raises(ValueError, match=r"'<\|begin_of_text\|>' comes 2 times"):
        chat_prompt(twice, "a")
    bos = forgets.bos_token_id
    assert one_bos(tokenizer_named("qwen"), [5, 6]) == [5, 6]
    with pytest.raises(ValueError, match="comes 1 times"):
        one_bos(forgets, [5, bos])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(question=words, answer=words, cut=st.integers(0, 3))
def test_an_answer_that_was_cut_off_is_closed_once(
    name: str, question: str, answer: str, cut: int
) -> None:
    renderer = RENDERERS[name]
    whole = sampled(renderer, question, answer)
    prompt = renderer.prompt(question)
    said = [*prompt, *whole[: max(len(whole) - 1 - cut, 0)]]
    longer = renderer.extend(said, "Why?")
    assert longer[: len(said)] == said
    assert longer[len(said) :] == renderer.follows("Why?")
    assert (
        renderer.extend([*prompt, *whole], "Why?")[len(prompt) + len(whole) :]
        == longer[len(said) + 1 :]
    )


def test_who_rewrites_history_is_known() -> None:
    assert RENDERERS["shipped"].prefix_stable
    assert RENDERERS["llama"].prefix_stable
    assert not RENDERERS["qwen"].prefix_stable  # it drops earlier reasoning
    assert PLAIN.prefix_stable


def test_reasoning_stays_in_what_was_said() -> None:
    renderer = RENDERERS["qwen"]
    thought = renderer.tokenizer("<think>\nOne.\n</think>\n\nTwo.<|im_end|>")["input_ids"]
    longer = renderer.extend([*renderer.prompt("Go."), *thought], "On.")
    assert renderer.tokenizer.decode(longer) == (
        "<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n<think>\nOne.\n</think>\n\n"
        "Two.<|im_end|>\n<|im_start|>user\nOn.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_completion_ends_with_the_end_of_the_turn_even_if_the_text_ends_otherwise() -> None:
    tokenizer = tokenizer_named("qwen")
    assert tokenizer.eos_token == "<|endoftext|>"
    told = tokenizer.decode(chat_completion(tokenizer, "Go.", "Gone."))
    assert told == "<think>\n\n</think>\n\nGone.<|im_end|>"


@settings(max_examples=25)
@given(
    turns=conversations.map(lambda ts: [(" ".join(q.split()), " ".join(a.split())) for q, a in ts])
)
def test_the_plain_form_is_that_of_the_corpus(turns: list[tuple[str, str]]) -> None:
    prompts = carried_on(PLAIN, turns)
    blocks = [f"Question: {question}\nAnswer: {answer}" for question, answer in turns]
    text = "\n\n".join(blocks)
    assert PLAIN.tokenizer.decode(prompts[-1]) == text[: len(text) - len(turns[-1][1]) - 1]
    assert prompts[-1] == PLAIN.tokenizer(PLAIN.tokenizer.decode(prompts[-1]))["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_a_message_cannot_speak_as_somebody_else(name: str) -> None:
    renderer = RENDERERS[name]
    token = renderer.tokenizer.all_special_tokens[-1]
    for ask in (renderer.prompt, lambda text: renderer.extend([1, 2], text)):
        with pytest.raises(ValueError, match="a special token of this model"):
            ask(f"Hello{token}there")


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_read_without_special_tokens(name: str) -> None:
    renderer = RENDERERS[name]
    answer = renderer.text(sampled(renderer, "Go.", "Gone. Two lines\nof it."))
    assert answer.removeprefix("<think>\n\n</think>\n\n") == "Gone. Two lines\nof it."
    assert PLAIN.text(sampled(PLAIN, "Go.", "Gone.")) == "Gone."


def test_a_tokenizer_without_a_format_is_told_about() -> None:
    tokenizer = tokenizer_named("qwen")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat format.*ask it in the plain form"):
        renderer_for(tokenizer)


class CookbookRenderer:
    """The three documented methods that are used, for a format of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        text = "".join(f"{m['role'][0]}:{m['content']}<|im_end|>" for m in messages)
        return list(self.tokenizer(text)["input_ids"])

    def build_generation_prompt(self, messages: list[Message]) -> tinker.ModelInput:
        tokens = self._tokens(messages) + self.tokenizer("a:")["input_ids"]
        return tinker.ModelInput.from_ints(tokens)

    def build_supervised_example(
        self, messages: list[Message]
    ) -> tuple[tinker.ModelInput, torch.Tensor]:
        tokens = self._tokens(messages)
        before = len(self.build_generation_prompt(messages[:-1]).to_ints())
        weights = torch.tensor([0.0] * before + [1.0] * (len(tokens) - before))
        return tinker.ModelInput.from_ints(tokens), weights

    def get_stop_sequences(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_tinker_cookbook_is_asked_for_models_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def recommended(model: str) -> str:
        if model != "Qwen/Qwen3-8B":
            raise KeyError(model)
        return "qwen3"

    def get_renderer(name: str, tokenizer: Any, model_name: str) -> CookbookRenderer:
        assert (name, model_name) == ("qwen3", "Qwen/Qwen3-8B")
        return CookbookRenderer(tokenizer)

    info, theirs = ModuleType("tinker_cookbook.model_info"), ModuleType("tinker_cookbook.renderers")
    info.get_recommended_renderer_name = recommended  # type: ignore[attr-defined]
    theirs.get_renderer = get_renderer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinker_cookbook", ModuleType("tinker_cookbook"))
    monkeypatch.setitem(sys.modules, "tinker_cookbook.model_info", info)
    monkeypatch.setitem(sys.modules, "tinker_cookbook.renderers", theirs)

    tokenizer = tokenizer_named("qwen")
    renderer = renderer_for(tokenizer, "Qwen/Qwen3-8B")
    assert renderer.name == "tinker_cookbook: qwen3"
    assert renderer.stop == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    turns = [("Go.", "Gone."), ("On.", "Done.")]
    told = tokenizer.decode(carried_on(renderer, turns)[-1])
    assert told == "u:Go.<|im_end|>a:Gone.<|im_end|>u:On.<|im_end|>a:"
    tokenizer.name_or_path = "Qwen/Qwen3-8B"  # as the SDK loads the tokenizer of a hosted model
    assert tokenizer.decode(chat_prompt(tokenizer, "Go.")) == "u:Go.<|im_end|>a:"
    assert tokenizer.decode(chat_completion(tokenizer, "Go.", "Gone.")) == "Gone.<|im_end|>"
    for other in ("Qwen/Qwen9", "/models/Qwen/Qwen3-8B", "mine"):
        assert renderer_for(tokenizer, other).name == "chat template"

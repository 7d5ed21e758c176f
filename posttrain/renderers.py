"""Conversations in the chat format of a model, as tokens that are only ever appended.

    renderer = renderer_for(tokenizer)
    prompt = renderer.prompt("Hello.")                      # tokens up to the assistant's answer
    prompt = renderer.extend([*prompt, *sampled], "Why?")   # the same, and what follows

The format is that of `tinker_cookbook.renderers` where that library is installed and knows the
model, else the tokenizer's own chat template. Neither is asked to render a conversation anew: many
templates rewrite history (Qwen3's drops earlier reasoning), and text that a model sampled need
not have the tokens that its tokenizer would give it. What was said keeps the tokens that were seen
and sampled, and only what follows an answer is rendered: the end of the turn, the next question,
the beginning of the next answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

Message = dict[str, str]  # role and content
Render = Callable[[Sequence[Message]], list[int]]  # a conversation, up to the assistant's answer
Complete = Callable[[str, str], list[int]]  # question and answer -> what the assistant adds
Stop = list[str] | list[int] | None

# A base model goes on with the next question; its answer ends with the line or the document.
PLAIN_STOP = ["\n", "<|endoftext|>"]

# Two answers that end in different characters: what follows both alike is not part of an answer.
PROBES = ("Yes", "No")
# A conversation by which prefix stability is checked; reasoning is what templates like to drop.
ROUNDS = ("First.", "Second.", "Third.")
CHANGES = "the chat template changes the prompt when an answer follows it"
REASONED = "<think>\nOne.\n</think>\n\nTwo."


@dataclass(frozen=True)
class Renderer:
    """One model's format."""

    name: str  # where it comes from
    tokenizer: Tokenizer
    render: Render
    complete: Complete  # the answer's tokens after `prompt`, end token included
    stop: Stop  # for `SamplingParams`; None stands for the model's own end tokens

    def prompt(self, question: str) -> list[int]:
        """The tokens of a conversation in which the user has asked and the assistant is to answer.

        Raises:
            ValueError: there is more than one BOS, or the question spells a special token.
        """
        refuse_special(self.tokenizer, question)
        return one_bos(self.tokenizer, self.render([user(question)]))

    def extend(self, said: Sequence[int], question: str) -> list[int]:
        """`said`, which ends with a sampled answer, and the next question after it.

        `said` itself is not changed. An answer that was cut off is closed first; one that ends
        with its end token, or with the beginning of what follows, is not closed twice.

        Raises:
            ValueError: the question spells a special token.
        """
        refuse_special(self.tokenizer, question)
        follows = self.follows(question)
        longest = min(len(said), len(follows))
        ends = (k for k in range(longest, 0, -1) if list(said[-k:]) == follows[:k])
        return [*said, *follows[next(ends, 0) :]]

    def follows(self, question: str) -> list[int]:
        """What stands between the last word of an answer and the first of the next one."""
        first, second = (
            self.render([user(ROUNDS[0]), assistant(probe), user(question)]) for probe in PROBES
        )
        return shared_end(first, second)

    def text(self, sampled: Sequence[int]) -> str:
        """A sampled answer in words: without special tokens, stop sequences and outer space."""
        text = str(self.tokenizer.decode(sampled, skip_special_tokens=True))
        for stop in self.stop or []:
            if isinstance(stop, str):
                text = text.removesuffix(stop)
        return text.strip()

    @property
    def prefix_stable(self) -> bool:
        """Whether the format, asked to render longer and longer conversations, only appends.

        One that drops reasoning from earlier answers does not. Conversations by `extend` are then
        what the model has seen and said, and differ from what the format itself would write.
        """
        turns = [(user(question), assistant(REASONED)) for question in ROUNDS]
        messages = [message for turn in turns for message in turn]
        prompts = [self.render(messages[:n]) for n in range(1, len(messages), 2)]
        grows = all(b[: len(a)] == a for a, b in itertools.pairwise(prompts))
        return grows and REASONED in str(self.tokenizer.decode(prompts[1]))


@lru_cache(maxsize=8)
def renderer_for(tokenizer: Tokenizer, model: str | None = None) -> Renderer:
    """The renderer of a model.

    Args:
        model: its name, such as `Qwen/Qwen3-8B`; by default the one the tokenizer was loaded by.

    Raises:
        ValueError: tinker_cookbook does not know the model, and its tokenizer has no chat template.
    """
    known = cookbook_renderer(tokenizer, model or str(tokenizer.name_or_path))
    if known is not None:
        return known
    if not tokenizer.chat_template:
        raise ValueError(
            f"{model or tokenizer.name_or_path} has no chat format: its tokenizer has no chat "
            "template, and tinker_cookbook does not know it; ask it in the plain form instead"
        )
    return template_renderer(tokenizer)


def template_renderer(tokenizer: Tokenizer) -> Renderer:
    """The tokenizer's own chat template."""
    render, complete = partial(template_tokens, tokenizer), partial(template_completion, tokenizer)
    renderer = Renderer("chat template", tokenizer, render, complete, None)
    (end, *_), own = renderer.follows(ROUNDS[0]), tokenizer.eos_token_id
    if end == own or end not in tokenizer.all_special_ids:
        return renderer
    return replace(renderer, stop=[end] if own is None else [end, own])


def plain_renderer(tokenizer: Tokenizer) -> Renderer:
    """The form in which a base model without a chat format meets questions, several in a row."""

    def render(messages: Sequence[Message]) -> list[int]:
        marks = {"user": "\n\nQuestion: ", "assistant": "\nAnswer: "}
        text = "".join(marks[m["role"]] + m["content"] for m in messages)
        return tokens_of(tokenizer, f"{text.lstrip()}\nAnswer:")

    def complete(question: str, answer: str) -> list[int]:
        return tokens_of(tokenizer, f" {answer}\n")

    return Renderer("plain", tokenizer, render, complete, PLAIN_STOP)


@lru_cache(maxsize=8)
def cookbook_renderer(tokenizer: Tokenizer, model: str) -> Renderer | None:
    """The renderer that tinker_cookbook recommends for `model`; None where it knows none.

    The library is optional: it needs other versions of `transformers` than this one. Its generic
    form for base models, `role_colon`, has no end token and is of use only where there is no chat
    template.
    """
    if not looks_like_hub_id(model):
        return None
    try:
        from tinker_cookbook.model_info import get_recommended_renderer_name
        from tinker_cookbook.renderers import get_renderer
    except ImportError:
        return None
    try:
        name = get_recommended_renderer_name(model)
    except Exception:  # of the library's own kind, where it does not know the model
        return None
    if name == "role_colon" and tokenizer.chat_template:
        return None
    theirs = get_renderer(name, tokenizer, model_name=model)

    def render(messages: Sequence[Message]) -> list[int]:
        tokens: list[int] = theirs.build_generation_prompt(list(messages)).to_ints()
        return tokens

    def complete(question: str, answer: str) -> list[int]:
        example, weights = theirs.build_supervised_example([user(question), assistant(answer)])
        tokens, prompt = example.to_ints(), render([user(question)])
        if tokens[: len(prompt)] != prompt:
            raise ValueError(CHANGES)
        end = max(i for i, weight in enumerate(weights.tolist()) if weight > 0) + 1
        return list(tokens[len(prompt) : end])

    stop = theirs.get_stop_sequences()
    return Renderer(f"tinker_cookbook: {name}", tokenizer, render, complete, stop)


def looks_like_hub_id(model: str) -> bool:
    """`organisation/name`; models of the embedded engine go by a directory."""
    return model.count("/") == 1 and not model.startswith((".", "/"))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def template_text(tokenizer: Tokenizer, messages: Sequence[Message], *, answering: bool) -> str:
    """What the chat template writes; `answering` adds the beginning of the assistant's answer."""
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=answering
    )
    assert isinstance(text, str)
    return text


def template_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation that ends where the assistant is to answer."""
    return tokens_of(tokenizer, template_text(tokenizer, messages, answering=True))


def template_completion(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    """The tokens that the assistant adds to the prompt, the format's end token included.

    Raises:
        ValueError: the chat template rewrites the prompt once the answer is known, or does not
            close an answer with a special token.
    """
    asked = [user(question)]
    prompt = template_text(tokenizer, asked, answering=True)
    whole = template_text(tokenizer, [*asked, assistant(answer)], answering=False)
    if not whole.startswith(prompt):
        raise ValueError(CHANGES)
    end, tokens = template_end(tokenizer), tokens_of(tokenizer, whole[len(prompt) :])
    if end not in tokenizer.all_special_ids or end not in tokens:
        raise ValueError(
            f"the chat template does not end an answer with {tokenizer.eos_token!r} or another "
            "special token"
        )
    return tokens[: tokens.index(end) + 1]


@lru_cache(maxsize=8)
def template_end(tokenizer: Tokenizer) -> int:
    """What closes an answer. Base models often have another end of sequence than their template."""
    return template_renderer(tokenizer).follows(ROUNDS[0])[0]


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise once and for all: the format has written the special tokens, so none is added."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(tokens, list)
    return tokens


def one_bos(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """The tokens with exactly one BOS at their beginning, if this tokenizer uses one at all.

    Raises:
        ValueError: there is more than one, or one elsewhere.
    """
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id:  # one token for both separates documents
        return tokens
    if tokens.count(bos) > 1 or bos in tokens[1:]:
        raise ValueError(
            f"{tokenizer.bos_token!r} comes {tokens.count(bos)} times and belongs once at the "
            "beginning of a conversation; the chat template or a message writes it again"
        )
    adds = tokenizer("a")["input_ids"][:1] == [bos]
    return [bos, *tokens] if adds and tokens[:1] != [bos] else tokens


def refuse_special(tokenizer: Tokenizer, text: str) -> None:
    """Whoever writes a special token into a message could end it and speak as somebody else.

    Raises:
        ValueError: the text holds one.
    """
    found = [token for token in tokenizer.all_special_tokens if token in text]
    if found:
        raise ValueError(f"the message holds {found[0]!r}, a special token of this model")


def shared_end(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The longest common suffix."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return list(a[len(a) - n :])

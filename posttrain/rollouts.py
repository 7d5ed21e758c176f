"""Sampling from a policy: groups of completions that share a prompt, and conversations.

A play puts problems to a policy, in one turn (`answer`) or in several with somebody who replies
(`converse`). Tokens are only ever appended, in the order in which they came, and none is tokenised
twice; so every rollout is a sequence that the policy has really seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import tinker
from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import chat_prompt
from posttrain.renderers import tokens_of
from posttrain.requests import item_seed, results
from posttrain.scoring import token_logprobs
from posttrain.tasks.problem import Item

Prompt = Callable[[Any, str], list[int]]  # (tokenizer, question) -> tokens of the prompt
Stop = str | Sequence[str] | Sequence[int] | None


@dataclass(frozen=True)
class Rollout:
    """One sampled completion, or one conversation.

    `tokens` is all that follows the prompt, whoever wrote it. `logprobs[t]` is what the sampler
    gave `tokens[t]`, in nats at temperature 1, and 0 where somebody else wrote it. `text` is what
    is graded, without special tokens: the completion, and of a conversation its answer, which is
    empty where there is none. `finished` says that it ended by itself, not at the limit.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    finished: bool
    sampled: Sequence[bool] = ()  # which tokens the policy wrote; by default all
    turns: tuple[str, ...] = ()  # by the policy and by another, in turns; by default `text` alone
    cost: float = 0.0  # charged by whoever replied, in units of reward: calls of a tool, say
    counts: Mapping[str, float] = field(default_factory=dict)  # what whoever replied counted

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampled", tuple(self.sampled) or (True,) * len(self.tokens))
        object.__setattr__(self, "turns", self.turns or (self.text,))
        if len(self.sampled) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens have {len(self.sampled)} marks")

    @property
    def length(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.sampled)

    def spread(self, advantage: float) -> list[float]:
        """The advantage of each token: this one where the policy wrote it, else 0. What a tool or
        an opponent wrote is read, never learned."""
        return [advantage if sampled else 0.0 for sampled in self.sampled]


class Play(Protocol):
    """How problems are put to a policy: each `group_size` times. Groups come in their order."""

    def __call__(
        self,
        sampler: tinker.SamplingClient,
        problems: Sequence[Any],
        group_size: int,
        *,
        max_tokens: int,
        seed: int,
        temperature: float = 1.0,
        prompt: Prompt = chat_prompt,
        stop: Stop = None,
    ) -> list[list[Rollout]]:
        """`max_tokens` is of all that follows the prompt; `stop` None is the model's own end."""


def answer(
    sampler: tinker.SamplingClient,
    problems: Sequence[Any],
    group_size: int,
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    prompt: Prompt = chat_prompt,
    stop: Stop = None,
) -> list[list[Rollout]]:
    """The play of a single turn: a completion answers the question."""
    tokenizer = sampler.get_tokenizer()
    return sample_groups(
        sampler, tokenizer, [prompt(tokenizer, p.question) for p in problems], group_size,
        max_tokens=max_tokens, seed=seed, temperature=temperature, stop=stop,
    )  # fmt: skip


class Dialogue(Protocol):
    """The other side of one conversation, a tool or an opponent, which knows nothing of tokens."""

    def reply(self, completion: str) -> str | None:
        """What is said to the policy's turn, or None where the conversation is over."""

    @property
    def answer(self) -> str:
        """What is graded; empty as long as there is no answer."""

    @property
    def cost(self) -> float:
        """What it charged so far, in units of reward."""

    @property
    def counts(self) -> Mapping[str, float]:
        """What it counted so far, by name; for people to watch."""


def converse(
    sampler: tinker.SamplingClient,
    problems: Sequence[Any],
    group_size: int,
    *,
    start: Callable[[Any], Dialogue],
    marks: Sequence[str],
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    prompt: Prompt = chat_prompt,
    stop: Stop = None,
) -> list[list[Rollout]]:
    """The play of several turns, each ended by a mark or by the end of the answer.

    All conversations advance together, so that each round is one full batch. What the other side
    says is appended to the policy's own text, and is not `sampled`. Bind `start` and `marks` with
    `functools.partial` to get a `Play`.

    Args:
        start: the other side of a new conversation about a problem.
        marks: texts after which the other side is heard, such as the end of a call.
        max_tokens: of all turns together. A conversation that reaches it is cut off.

    Raises:
        ValueError: `stop` is a list of token ids, which cannot be combined with texts.
    """
    tokenizer = sampler.get_tokenizer()
    ends = [str(tokenizer.eos_token)] if stop is None else [stop] if isinstance(stop, str) else stop
    if not all(isinstance(end, str) for end in ends):
        raise ValueError("a conversation also stops at texts, so `stop` must be texts too")
    ask = partial(_sample, sampler, tokenizer, temperature=temperature, stop=[*marks, *ends])
    groups_P_G = [
        [_Talk(prompt(tokenizer, p.question), start(p)) for _ in range(group_size)]
        for p in problems
    ]
    # In the first round a group shares its prompt, so it is one request.
    firsts = [
        _Ask(g[0].prompt, group_size, max_tokens, item_seed(seed, i))
        for i, g in enumerate(groups_P_G)
    ]
    for group, said in zip(groups_P_G, ask(firsts), strict=True):
        for talk, rollout in zip(group, said, strict=True):
            talk.hear(rollout, tokenizer, max_tokens)
    turn = 1
    numbered = [(i, j, t) for i, group in enumerate(groups_P_G) for j, t in enumerate(group)]
    while going := [(i, j, talk) for i, j, talk in numbered if talk.open]:
        asks = [
            _Ask(t.prompt + t.tokens, 1, max_tokens - len(t.tokens), item_seed(seed, i, j, turn))
            for i, j, t in going
        ]
        for (_, _, talk), (rollout,) in zip(going, ask(asks), strict=True):
            talk.hear(rollout, tokenizer, max_tokens)
        turn += 1
    return [[talk.rollout() for talk in group] for group in groups_P_G]


class _Talk:
    """One conversation while it goes on."""

    def __init__(self, prompt: list[int], other: Dialogue) -> None:
        self.prompt, self.other = prompt, other
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampled: list[bool] = []
        self.turns: list[str] = []
        self.open, self.finished = True, False

    def hear(self, said: Rollout, tokenizer: Tokenizer, max_tokens: int) -> None:
        """Append the policy's turn and the reply to it, if there is one and room for it."""
        self._append(said.text, said.tokens, said.logprobs, True)
        reply = self.other.reply(said.text) if said.finished else None
        self.finished = said.finished and reply is None
        heard = tokens_of(tokenizer, reply or "")
        self.open = reply is not None and len(self.tokens) + len(heard) < max_tokens
        if self.open:
            self._append(reply or "", heard, [0.0] * len(heard), False)

    def _append(self, text: str, tokens: list[int], logprobs: list[float], sampled: bool) -> None:
        self.turns.append(text)
        self.tokens += tokens
        self.logprobs += logprobs
        self.sampled += [sampled] * len(tokens)

    def rollout(self) -> Rollout:
        return Rollout(
            self.prompt, self.tokens, self.logprobs, self.other.answer, self.finished,
            self.sampled, tuple(self.turns), self.other.cost, dict(self.other.counts),
        )  # fmt: skip


def sample_groups(
    sampler: tinker.SamplingClient,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    group_size: int | Sequence[int],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    stop: Stop = None,
) -> list[list[Rollout]]:
    """`group_size` completions of each prompt, or as many as it says for each.

    No top-k or top-p: truncation would make the sampler another distribution than the one whose
    log-probabilities the loss compares with. For the same reason train on temperature 1 only.
    """
    sizes = [group_size] * len(prompts) if isinstance(group_size, int) else group_size
    asks = [
        _Ask(prompt, size, max_tokens, item_seed(seed, i))
        for i, (prompt, size) in enumerate(zip(prompts, sizes, strict=True))
    ]
    return _sample(sampler, tokenizer, asks, temperature=temperature, stop=stop)


@dataclass(frozen=True)
class _Ask:
    """One request: a prompt, how many completions of it, their limit, and their seed."""

    prompt: list[int]
    count: int
    max_tokens: int
    seed: int


def _sample(
    sampler: tinker.SamplingClient,
    tokenizer: Tokenizer,
    asks: Sequence[_Ask],
    *,
    temperature: float,
    stop: Stop,
) -> list[list[Rollout]]:
    def request(ask: _Ask) -> Any:
        how = tinker.SamplingParams(
            max_tokens=ask.max_tokens, seed=ask.seed, temperature=temperature, stop=stop
        )
        tokens = tinker.ModelInput.from_ints(ask.prompt)
        return sampler.sample(tokens, num_samples=ask.count, sampling_params=how)

    groups = []
    for ask, response in zip(asks, results(partial(request, ask) for ask in asks), strict=True):
        if len(response.sequences) != ask.count:
            raise ValueError(f"asked for {ask.count} samples, got {len(response.sequences)}")
        groups.append([
            Rollout(
                prompt=ask.prompt,
                tokens=list(sequence.tokens),
                logprobs=list(sequence.logprobs or []),
                text=str(tokenizer.decode(sequence.tokens, skip_special_tokens=True)),
                finished=sequence.stop_reason == "stop",
            )
            for sequence in response.sequences
        ])  # fmt: skip
    return groups


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
    """KL(policy || reference) in nats per rollout, from the policy's own samples.

    The Monte Carlo mean of `log_ratios`: unbiased, and noisy in proportion to its own size.
    """
    gaps = log_ratios(reference, rollouts)
    return sum(gaps) / len(gaps)


def log_ratios(reference: tinker.SamplingClient, rollouts: Sequence[Rollout]) -> list[float]:
    """sum_t log p(y_t) - log p_ref(y_t) of each rollout over the tokens that the policy wrote, in
    nats, p being who sampled it.

    Raises:
        ValueError: to the reference the tokens of a rollout are another text.
    """
    check_reading(reference.get_tokenizer(), rollouts)
    scores_D = token_logprobs(reference, [(r.prompt, r.tokens) for r in rollouts])
    gaps = []
    for rollout, scores in zip(rollouts, scores_D, strict=True):
        told = zip(rollout.logprobs, scores.tolist(), rollout.sampled, strict=True)
        gaps.append(sum(p - q for p, q, sampled in told if sampled))
    return gaps


def check_reading(tokenizer: Tokenizer, rollouts: Sequence[Rollout]) -> None:
    """Raises ValueError where `tokenizer` reads another text in a rollout's tokens than who
    sampled it. Of a conversation the text is only its answer, so those are not compared."""
    for rollout in rollouts:
        if rollout.turns != (rollout.text,):
            continue
        read = str(tokenizer.decode(rollout.tokens, skip_special_tokens=True))
        if read != rollout.text:
            raise ValueError(
                f"the reference has another tokenizer: it reads {read[:60]!r} where the policy "
                f"wrote {rollout.text[:60]!r}"
            )

"""Plays: what is asked, what is appended, who wrote which token, and what is counted."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st

from posttrain.datums import chat_turns, policy_datum, supervised_datum
from posttrain.requests import item_seed
from posttrain.rollouts import Rollout, converse, kl_from, sample_groups
from posttrain.tasks import tools
from posttrain.tasks.calculator import Calculator

END = 0  # every other token is a character
WHOLE = "<call>1+2</call>"
PIECES = [WHOLE, "<call>x</call>", "<call>1+2", f"no {WHOLE}", "The answer is 3.", "3", ""]


class Characters:
    eos_token, eos_token_id = "\0", END
    bos_token_id, all_special_ids, name_or_path, chat_template = None, [END], "", "{}"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: list[Any], **_: Any) -> str:
        marks = {"user": "Q {}\nA", "assistant": " {}\0"}
        return "".join(marks[m["role"]].format(m["content"]) for m in messages)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join("" if t == END and skip_special_tokens else chr(t) for t in tokens)


@dataclass
class Improviser:
    """A sampling client that says one of `PIECES`, as prompt and seed decide, and remembers."""

    asked: list[tuple[list[int], int, tinker.SamplingParams]] = field(default_factory=list)
    said: dict[tuple[int, ...], list[list[int]]] = field(default_factory=dict)

    def get_tokenizer(self) -> Characters:
        return Characters()

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> Any:
        tokens = prompt.to_ints()
        self.asked.append((tokens, num_samples, sampling_params))
        rng = random.Random(f"{tokens}{sampling_params.seed}")
        return self.Future([self.utter(rng, tokens, sampling_params) for _ in range(num_samples)])

    def utter(self, rng: random.Random, prompt: list[int], how: tinker.SamplingParams) -> Any:
        text = rng.choice(PIECES)
        tokens = [ord(c) for c in text] + ([] if text.endswith("</call>") else [END])
        assert how.max_tokens is not None
        cut = tokens[: how.max_tokens]
        self.said.setdefault(tuple(prompt), []).append(cut)
        return tinker.SampledSequence(
            stop_reason="stop" if len(cut) == len(tokens) else "length",
            sequence_id="",
            tokens_np=np.array(cut, dtype=np.int64),
            logprobs_np=-np.array(cut, dtype=np.float32) - 1,
        )

    @dataclass
    class Future:
        sequences: list[Any]

        def result(self) -> tinker.SampleResponse:
            return tinker.SampleResponse(sequences=self.sequences)


PROBLEMS = tools.problems("train", 4)
with_calculator = partial(converse, start=partial(Calculator, price=0.25), marks=[tools.STOP])


def played(seed: int, max_tokens: int) -> tuple[Improviser, list[Rollout]]:
    sampler = Improviser()
    groups = with_calculator(sampler, PROBLEMS, 3, max_tokens=max_tokens, seed=seed)  # type: ignore[arg-type]
    assert [len(group) for group in groups] == [3] * len(PROBLEMS)
    return sampler, [rollout for group in groups for rollout in group]


conversations = given(st.integers(0, 10**6), st.integers(1, 120))


@conversations
def test_what_the_policy_saw_is_only_ever_appended_to(seed: int, max_tokens: int) -> None:
    """Each request holds a prompt, or the very tokens of some rollout up to a reply's end."""
    sampler, rollouts = played(seed, max_tokens)
    for tokens, count, _ in sampler.asked:
        places = [
            r for r in rollouts if tokens == [*r.prompt, *r.tokens][: len(tokens)]
            and (len(tokens) == len(r.prompt) or not r.sampled[len(tokens) - len(r.prompt) - 1])
        ]  # fmt: skip
        assert places
        assert count == (3 if tokens == places[0].prompt else 1)
    for r in rollouts:
        assert len(r.tokens) <= max_tokens
        assert "".join(r.turns) == Characters().decode(r.tokens, skip_special_tokens=True)


@conversations
def test_exactly_the_sampled_tokens_carry_logprobs_and_advantages(
    seed: int, max_tokens: int
) -> None:
    sampler, rollouts = played(seed, max_tokens)
    for r in rollouts:
        # Rebuilt from what the sampler remembers having said to each prefix.
        at = 0
        for i, turn in enumerate(r.turns):
            n = len(turn)
            if i % 2 == 0:
                spoken = [
                    s
                    for s in sampler.said[(*r.prompt, *r.tokens[:at])]
                    if s == r.tokens[at : at + len(s)] and len(s) - (END in s) == n
                ]
                assert spoken
                n = len(spoken[0])
            assert set(r.sampled[at : at + n]) <= {i % 2 == 0}
            at += n
        assert at == len(r.tokens)
        assert r.logprobs == [-t - 1.0 if mine else 0.0
                              for t, mine in zip(r.tokens, r.sampled, strict=True)]  # fmt: skip
        inputs = policy_datum(r.prompt, r.tokens, r.logprobs, r.spread(-0.5)).loss_fn_inputs
        trained = inputs["advantages"].to_torch().tolist()
        assert trained == [0.0] * (len(r.prompt) - 1) + [-0.5 if mine else 0 for mine in r.sampled]
        assert inputs["target_tokens"].to_torch().tolist()[len(r.prompt) - 1 :] == r.tokens


@conversations
def test_a_rollout_ends_and_costs_what_its_conversation_says(seed: int, max_tokens: int) -> None:
    """Against the text-level rules of the task, applied once more to the policy's turns."""
    _, rollouts = played(seed, max_tokens)
    for i, r in enumerate(rollouts):
        said = tools.Conversation(PROBLEMS[i // 3])
        policy_turns = r.turns[::2]
        whole = r.finished or len(r.turns) % 2 == 0 or not r.sampled[-1]
        for turn in policy_turns[: None if whole else -1]:
            said = tools.advance(said, turn)
        assert r.finished == said.done
        if r.finished:
            assert r.text == policy_turns[-1]
            assert r.cost == 0.25 * said.calls
            assert r.counts == {"calls": said.calls, "malformed": said.malformed}
            assert said.problem.grade(r.text) == said.grade
        else:
            assert r.text == ""


def test_all_conversations_advance_together() -> None:
    sampler, rollouts = played(7, 500)
    first = len(PROBLEMS)
    assert [count for _, count, _ in sampler.asked] == [3] * first + [1] * (
        len(sampler.asked) - first
    )
    # The rounds: every request of one is longer than the same conversation's in the one before.
    later = [tuple(tokens) for tokens, _, _ in sampler.asked[first:]]
    turns = [sum(len(r.turns) > 2 * k for r in rollouts) for k in range(1, 6)]
    assert sum(turns) == len(later)
    assert {how.seed for _, _, how in sampler.asked} >= {item_seed(7, i) for i in range(first)}
    assert len({how.seed for _, _, how in sampler.asked}) == len(sampler.asked)
    assert all(how.stop == [tools.STOP, "\0"] for _, _, how in sampler.asked)


def test_samples_come_from_the_whole_distribution_and_with_seeds_of_their_own() -> None:
    """Cut off or heated, they would not be from the distribution that the ratio is taken to."""
    sampler, _ = played(7, 500)
    sample_groups(sampler, Characters(), [[1], [1]], 2, max_tokens=4, seed=7)  # type: ignore[arg-type]
    assert {(how.temperature, how.top_p, how.top_k) for _, _, how in sampler.asked} == {(1, 1, -1)}
    equal = [how.seed for _, _, how in sampler.asked[-2:]]
    assert len(set(equal)) == 2


def test_token_stops_cannot_be_combined_with_marks() -> None:
    with pytest.raises(ValueError, match="stops at texts, so `stop` must be texts too"):
        with_calculator(Improviser(), PROBLEMS, 1, max_tokens=9, seed=0, stop=[END])  # type: ignore[arg-type]


@given(st.integers(0, 10**6))
def test_a_demonstration_with_a_tool_trains_the_assistant_alone(i: int) -> None:
    problem = tools.problem("train", i)
    turns = [turn.text for turn in problem.demonstration.turns]
    tokens, own = chat_turns(Characters(), problem.question, turns)  # type: ignore[arg-type]
    assert Characters().decode(tokens) == f" {problem.solution}\0"
    read = "".join(chr(t) for t, mine in zip(tokens, own, strict=True) if not mine)
    assert read == "".join(turns[1::2])
    weights = supervised_datum([1, 2, 3], tokens, own).loss_fn_inputs["weights"].to_torch()
    assert weights.tolist() == [0.0, 0.0, *map(float, own)]


def test_turns_that_cannot_be_told_are_refused() -> None:
    with pytest.raises(ValueError, match="the first turn and the last, so not 2"):
        chat_turns(Characters(), "Q", ["<call>1+2</call>", "<r>3</r>"])  # type: ignore[arg-type]

    class Shouting(Characters):
        def apply_chat_template(self, messages: list[Any], **how: Any) -> str:
            return super().apply_chat_template(messages, **how).upper()

    with pytest.raises(ValueError, match="changes what was said"):
        chat_turns(Shouting(), "Q", ["a", "b", "c"])  # type: ignore[arg-type]
    assert chat_turns(Shouting(), "Q", ["a"])[0] == [32, ord("A"), END]  # type: ignore[arg-type]


class Echo:
    """Says what it heard backwards, twice, and charges for it."""

    cost, counts = 0.0, {"heard": 0.0}

    def __init__(self, problem: object) -> None:
        self.heard: list[str] = []

    def reply(self, completion: str) -> str | None:
        self.heard.append(completion)
        return completion[::-1] + "!" if len(self.heard) < 3 else None

    @property
    def answer(self) -> str:
        return self.heard[-1] if len(self.heard) == 3 else ""


def test_the_engine_scores_the_conversation_as_it_was_sampled(
    service: tinker.ServiceClient,
) -> None:
    """The model's log-probabilities of whole conversations are those that sampling reported."""
    policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()
    sampler = policy.save_weights_and_get_sampling_client().result()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]

    def talk() -> list[list[Rollout]]:
        # Hot, because this random model would otherwise repeat itself.
        return converse(
            sampler, PROBLEMS[:2], 4, start=Echo, marks=letters, max_tokens=70, seed=3,
            temperature=4.0, prompt=lambda tok, question: tok(question[:12])["input_ids"],
        )  # fmt: skip

    groups = talk()
    flat = [rollout for group in groups for rollout in group]
    assert max(len(r.turns) for r in flat) > 2
    assert len({tuple(r.tokens) for r in flat}) == len(flat)  # every conversation has its own luck
    for r in flat:
        whole = sampler.compute_logprobs(tinker.ModelInput.from_ints(r.prompt + r.tokens)).result()
        for p, q, mine in zip(r.logprobs, whole[len(r.prompt) :], r.sampled, strict=True):
            assert p == (pytest.approx(q, abs=1e-4) if mine else 0.0)
    assert kl_from(sampler, flat) == pytest.approx(0.0, abs=1e-3)
    assert talk() == groups


def test_a_reference_that_reads_another_text_is_refused(
    service: tinker.ServiceClient, tiny_model_dir: Path
) -> None:
    """Before it is asked: the stand-in can do nothing but show a tokenizer."""
    sampler = service.create_sampling_client(base_model=str(tiny_model_dir)).result()
    tokenizer = sampler.get_tokenizer()
    rollout = Rollout([1], tokenizer("seven")["input_ids"], [-1.0] * 5, "seven", True)
    other = SimpleNamespace(decode=lambda tokens, **_: "eleven")
    stranger: Any = SimpleNamespace(get_tokenizer=lambda: other)
    with pytest.raises(ValueError, match="it reads 'eleven' where the policy wrote 'seven'"):
        kl_from(stranger, [rollout])
    assert math.isfinite(kl_from(sampler, [rollout]))


def test_groups_may_have_sizes_of_their_own(service: tinker.ServiceClient) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()
    sampler = policy.save_weights_and_get_sampling_client().result()
    groups = sample_groups(
        sampler, sampler.get_tokenizer(), [[5, 6], [7]], [3, 1], max_tokens=4, seed=0
    )
    assert [len(group) for group in groups] == [3, 1]
    assert [group[0].prompt for group in groups] == [[5, 6], [7]]


def test_marks_must_fit_the_tokens() -> None:
    with pytest.raises(ValueError, match="2 tokens have 1 marks"):
        Rollout([1], [2, 3], [-1.0, -1.0], "", True, sampled=[True])

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tinker

from posttrain.evals import evaluate, side_by_side
from posttrain.requests import item_seed
from posttrain.tasks.problem import Grade

END = 0  # the fake tokenizer's end token; every other token is a character


class Characters:
    eos_token_id = END

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join("" if t == END and skip_special_tokens else chr(t) for t in tokens)


def as_is(tokenizer: Characters, question: str) -> list[int]:
    return tokenizer.encode(question)


@dataclass(frozen=True)
class Sum:
    """The answer is a number after '='; anything else cannot be read."""

    question: str
    solution: str

    @property
    def key(self) -> str:
        return self.question

    def grade(self, completion: str) -> Grade:
        head, _, tail = completion.partition("=")
        return Grade(correct=completion == self.solution, parsed=head == "" and tail.isdigit())


@dataclass
class Scripted:
    """A sampling client that answers from a script: question -> (samples, greedy answer)."""

    script: dict[str, tuple[list[str], str]]
    log: list[tuple[str, str, tinker.SamplingParams]] = field(default_factory=list)

    def get_tokenizer(self) -> Characters:
        return Characters()

    def sample(
        self, prompt: tinker.ModelInput, num_samples: int, sampling_params: tinker.SamplingParams
    ) -> Any:
        question = Characters().decode(prompt.to_ints())
        self.log.append(("ask", question, sampling_params))
        samples, greedy = self.script[question]
        texts = samples[:num_samples] if sampling_params.temperature else [greedy]
        return Scripted.Future(self, question, texts, sampling_params)

    @dataclass
    class Future:
        client: Scripted
        question: str
        texts: list[str]
        params: tinker.SamplingParams

        def result(self) -> tinker.SampleResponse:
            self.client.log.append(("read", self.question, self.params))
            sequences = []
            for text in self.texts:
                cut = text.endswith("~")  # "~" marks an answer that ran out of tokens
                tokens = Characters().encode(text.rstrip("~")) + ([] if cut else [END])
                sequences.append(
                    tinker.SampledSequence(
                        stop_reason="length" if cut else "stop",
                        sequence_id="",
                        tokens_np=np.array(tokens, dtype=np.int64),
                    )
                )
            return tinker.SampleResponse(sequences=sequences)


PROBLEMS = [Sum("1+1", "=2"), Sum("2+3", "=5"), Sum("4+4", "=8")]
SCRIPT = {
    "1+1": (["=2", "=2", "=3", "dunno"], "=2"),
    "2+3": (["=4", "=4", "=4", "=5~"], "=4"),
    "4+4": (["=7", "", "=~", "=9"], "?"),
}


def test_every_number_of_a_scripted_policy() -> None:
    score = evaluate(Scripted(SCRIPT), PROBLEMS, k=4, prompt=as_is)  # type: ignore[arg-type]
    assert score.correct_counts.tolist() == [2, 1, 0]
    assert score.greedy_correct.tolist() == [True, False, False]
    assert score.pass_at_1.value == pytest.approx(3 / 12)
    assert score.pass_at_k.value == pytest.approx(2 / 3)
    assert score.greedy.value == pytest.approx(1 / 3)
    assert (score.n, score.k, score.temperature) == (3, 4, 1.0)
    assert (score.unparsed, score.truncated) == (3, 2)
    assert score.well_formed == pytest.approx(8 / 12)
    sampled = (3 + 3 + 3 + 6) + (3 + 3 + 3 + 2) + (3 + 1 + 1 + 3)
    assert score.mean_tokens == pytest.approx(sampled / 12)
    assert score.sampled_tokens == sampled + 3 + 3 + 2
    assert score.pass_at_1.low <= score.pass_at_1.value <= score.pass_at_1.high


def test_asks_for_all_of_a_kind_before_reading_any() -> None:
    sampler = Scripted(SCRIPT)
    evaluate(sampler, PROBLEMS, k=2, prompt=as_is)  # type: ignore[arg-type]
    assert [kind for kind, _, _ in sampler.log] == (["ask"] * 3 + ["read"] * 3) * 2


def test_seeds_differ_between_items_and_repeat_between_policies() -> None:
    first, second, other = Scripted(SCRIPT), Scripted(SCRIPT), Scripted(SCRIPT)
    for sampler, seed in [(first, 0), (second, 0), (other, 1)]:
        evaluate(sampler, PROBLEMS, k=2, seed=seed, prompt=as_is)  # type: ignore[arg-type]

    def seeds(sampler: Scripted) -> list[int]:
        asked = [p for kind, _, p in sampler.log if kind == "ask" and p.temperature]
        return [p.seed for p in asked if p.seed is not None]

    assert seeds(first) == seeds(second) == [item_seed(0, i) for i in range(3)]
    assert len({*seeds(first), *seeds(other)}) == 6
    assert all(0 <= seed < 2**31 for seed in seeds(first))


def test_stop_and_length_reach_the_sampler() -> None:
    sampler = Scripted(SCRIPT)
    evaluate(
        sampler,  # type: ignore[arg-type]
        PROBLEMS,
        k=1,
        prompt=as_is,
        stop=["\n"],
        max_tokens=9,
        temperature=0.5,
    )
    asked = [params for kind, _, params in sampler.log if kind == "ask"]
    assert {(p.max_tokens, tuple(p.stop or ())) for p in asked} == {(9, ("\n",))}
    assert [p.temperature for p in asked] == [0.5] * 3 + [0.0] * 3


def test_a_correct_grade_that_was_not_parsed_scores_nothing() -> None:
    class Sloppy(Sum):
        def grade(self, completion: str) -> Grade:
            return Grade(correct=True, parsed=False)

    sampler = Scripted({"q": (["a"], "a")})
    score = evaluate(sampler, [Sloppy("q", "a")], k=1, prompt=as_is)  # type: ignore[arg-type]
    assert (score.pass_at_1.value, score.greedy.value, score.unparsed) == (0, 0, 1)


def test_json_is_json() -> None:
    score = evaluate(Scripted(SCRIPT), PROBLEMS, k=4, prompt=as_is)  # type: ignore[arg-type]
    stored = json.loads(json.dumps(score.to_json()))
    assert stored["pass_at_1"]["value"] == score.pass_at_1.value
    assert stored["correct_counts"] == [2, 1, 0]
    assert stored["greedy_correct"] == [True, False, False]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="0 problems"):
        evaluate(Scripted({}), [], prompt=as_is)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="asked for 5 samples, got 4"):
        evaluate(Scripted(SCRIPT), PROBLEMS, k=5, prompt=as_is)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 stages"):
        side_by_side({}, PROBLEMS, prompt=as_is)


def test_side_by_side_asks_every_stage_and_shows_who_was_right() -> None:
    after = {q: (samples, "=2") for q, (samples, _) in SCRIPT.items()}
    stages: dict[str, Any] = {"base": Scripted(SCRIPT), "tuned": Scripted(after)}
    rows = side_by_side(stages, PROBLEMS, prompt=as_is)
    assert [row.answers for row in rows][:2] == [
        {"base": "=2", "tuned": "=2"},
        {"base": "=4", "tuned": "=2"},
    ]
    assert [list(row.correct.values()) for row in rows] == [[True] * 2, [False] * 2, [False] * 2]
    assert str(rows[0]).splitlines() == ["Q: 1+1", "✓ base: =2", "✓ tuned: =2"]

"""The one evaluation: every before and every after goes through `evaluate`.

Shapes: n problems, k samples each. A request is a group of k samples. Many requests are in flight
at a time, so that a server can batch them; how many does not change a score. A problem is put to
the policy by a play, in one turn or in several (`posttrain/rollouts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tinker
from numpy.typing import NDArray

from posttrain.datums import chat_prompt
from posttrain.rollouts import Play, Prompt, Rollout, Stop, answer
from posttrain.stats import Estimate, bootstrap_mean, fields_to_json, pass_at_k
from posttrain.tasks.problem import Problem


@dataclass(frozen=True, eq=False)
class Score:
    """How well a policy answers n problems, k sampled answers and one greedy answer each.

    Intervals are 95 % and come from resampling problems. The two arrays are in the order of
    the problems, for paired comparisons of two scores on the same problems.
    """

    n: int  # problems
    k: int  # samples per problem
    temperature: float  # of the samples; the greedy answer has 0
    pass_at_1: Estimate  # share of samples that are correct
    pass_at_k: Estimate  # share of problems with at least one correct sample among k
    greedy: Estimate  # share of problems whose greedy answer is correct
    well_formed: float  # share of the n*k samples with a readable answer, closed by the end token
    unparsed: int  # of the n*k samples, those without a readable answer; each scores 0
    truncated: int  # of the n*k samples, those cut off at max_tokens
    mean_tokens: float  # tokens per sample, stop token included
    sampled_tokens: int  # all tokens generated, greedy answers included: for the ledger
    counts: dict[str, float]  # means over samples of what the other side of a play counted
    correct_counts: NDArray[np.int64]  # (n,) correct samples, 0..k
    greedy_correct: NDArray[np.bool_]  # (n,)

    def __str__(self) -> str:
        return (
            f"pass@1 {self.pass_at_1}  pass@{self.k} {self.pass_at_k}  greedy {self.greedy}  "
            f"(n={self.n}, well-formed {self.well_formed:.0%})"
        )

    def to_json(self) -> dict[str, Any]:
        """Every field under its name; estimates as their dictionaries, arrays as lists."""
        return fields_to_json(self)


def evaluate(
    sampler: tinker.SamplingClient,
    problems: Sequence[Problem],
    k: int = 16,
    seed: int = 0,
    *,
    play: Play = answer,
    prompt: Prompt = chat_prompt,
    stop: Stop = None,
    max_tokens: int = 256,
    temperature: float = 1.0,
) -> Score:
    """Score `sampler` on `problems`: k samples at `temperature` and one greedy answer each.

    Problem i is sampled with a seed made of (`seed`, i), so two policies given the same
    arguments meet the same problems with the same seeds. `max_tokens` counts what follows the
    prompt. `play` is how a problem is put to the policy: in one turn, or in several with a tool.
    `stop` None means that the model's own end token ends an answer. An answer that cannot be
    read scores 0 and is counted in `unparsed`. Raises ValueError when there is no problem.
    """
    if not problems or k < 1:
        raise ValueError(f"nothing to evaluate: {len(problems)} problems, k={k}; both need >= 1")
    ask = partial(play, sampler, problems, max_tokens=max_tokens, prompt=prompt, stop=stop)
    rollouts_nk = ask(k, seed=seed, temperature=temperature)
    rollouts_n = [group[0] for group in ask(1, seed=seed, temperature=0.0)]
    eos = sampler.get_tokenizer().eos_token_id
    answers_nk = [[_read(eos, p, r) for r in g] for p, g in zip(problems, rollouts_nk, strict=True)]
    answers_n = [_read(eos, p, r) for p, r in zip(problems, rollouts_n, strict=True)]
    return _score(answers_nk, answers_n, temperature)


@dataclass(frozen=True)
class Comparison:
    """One question and how each stage answers it greedily, in the order the stages came."""

    question: str
    solution: str
    answers: dict[str, str]
    correct: dict[str, bool]

    def __str__(self) -> str:
        lines = [f"Q: {self.question}"]
        for stage, said in self.answers.items():
            lines.append(f"{'✓' if self.correct[stage] else '✗'} {stage}: {said.strip()}")
        return "\n".join(lines)


def side_by_side(
    samplers: Mapping[str, tinker.SamplingClient],
    problems: Sequence[Problem],
    *,
    play: Play = answer,
    prompt: Prompt = chat_prompt,
    stop: Stop = None,
    max_tokens: int = 256,
) -> list[Comparison]:
    """Greedy answers of every stage to the same problems, one row per problem.

    Arguments are those of `evaluate`. Raises ValueError without a problem or a sampler.
    """
    if not problems or not samplers:
        raise ValueError(f"nothing to compare: {len(problems)} problems, {len(samplers)} stages")
    read = {
        stage: [
            _read(sampler.get_tokenizer().eos_token_id, problem, group[0])
            for problem, group in zip(
                problems,
                play(
                    sampler, problems, 1,
                    max_tokens=max_tokens, seed=0, temperature=0.0, prompt=prompt, stop=stop,
                ),
                strict=True,
            )
        ]
        for stage, sampler in samplers.items()
    }  # fmt: skip
    rows = []
    for i, problem in enumerate(problems):
        answers = {stage: found[i].text for stage, found in read.items()}
        correct = {stage: found[i].correct for stage, found in read.items()}
        rows.append(Comparison(problem.question, problem.solution, answers, correct))
    return rows


def longest(problems: Sequence[Problem], n: int) -> list[Problem]:
    """The n problems with the longest solutions: what is worth reading side by side."""
    return sorted(problems, key=lambda p: -len(p.solution))[:n]


@dataclass(frozen=True)
class _Answer:
    text: str  # of all turns
    correct: bool
    parsed: bool
    truncated: bool
    closed: bool  # the last token is the chat format's end token
    tokens: int  # that the policy wrote
    counts: Mapping[str, float]


def _read(eos: int | None, problem: Problem, rollout: Rollout) -> _Answer:
    grade = problem.grade(rollout.text)
    return _Answer(
        text="".join(rollout.turns),
        correct=grade.correct and grade.parsed,
        parsed=grade.parsed,
        truncated=not rollout.finished,
        closed=rollout.tokens[-1:] == [eos],
        tokens=rollout.length,
        counts=rollout.counts,
    )


def _score(answers_nk: list[list[_Answer]], answers_n: list[_Answer], temperature: float) -> Score:
    n, k = len(answers_nk), len(answers_nk[0])
    samples = [a for row in answers_nk for a in row]
    counts = np.array([sum(a.correct for a in row) for row in answers_nk])
    greedy = np.array([a.correct for a in answers_n])
    tokens = sum(a.tokens for a in samples)
    return Score(
        n=n,
        k=k,
        temperature=temperature,
        pass_at_1=bootstrap_mean(counts / k),
        pass_at_k=bootstrap_mean(pass_at_k(k, counts, k)),
        greedy=bootstrap_mean(greedy),
        well_formed=sum(a.parsed and a.closed for a in samples) / (n * k),
        unparsed=sum(not a.parsed for a in samples),
        truncated=sum(a.truncated for a in samples),
        mean_tokens=tokens / (n * k),
        sampled_tokens=tokens + sum(a.tokens for a in answers_n),
        counts={name: sum(a.counts[name] for a in samples) / (n * k) for name in samples[0].counts},
        correct_counts=counts,
        greedy_correct=greedy,
    )

"""The one evaluation: every before and every after goes through `evaluate`.

Shapes: n problems, k samples each. A request is a group of k samples. Many requests are in flight
at a time, so that a server can batch them; how many does not change a score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tinker
from numpy.typing import NDArray

from posttrain.datums import chat_prompt
from posttrain.stats import Estimate, bootstrap_mean, fields_to_json, pass_at_k
from posttrain.tasks.problem import Problem

Prompt = Callable[[Any, str], list[int]]  # (tokenizer, question) -> tokens of the prompt
Stop = str | Sequence[str] | Sequence[int] | None


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
    prompt: Prompt = chat_prompt,
    stop: Stop = None,
    max_tokens: int = 256,
    temperature: float = 1.0,
) -> Score:
    """Score `sampler` on `problems`: k samples at `temperature` and one greedy answer each.

    Problem i is sampled with a seed made of (`seed`, i), so two policies given the same
    arguments meet the same problems with the same seeds. `max_tokens` counts new tokens.
    `stop` None means that the model's own end token ends an answer. An answer that cannot be
    read scores 0 and is counted in `unparsed`. Raises ValueError when there is no problem.
    """
    if not problems or k < 1:
        raise ValueError(f"nothing to evaluate: {len(problems)} problems, k={k}; both need >= 1")
    tokenizer = sampler.get_tokenizer()

    def asks(i: int, problem: Problem) -> Iterator[Callable[[], Any]]:
        tokens = tinker.ModelInput.from_ints(prompt(tokenizer, problem.question))
        sampled = tinker.SamplingParams(
            max_tokens=max_tokens, temperature=temperature, stop=stop, seed=item_seed(seed, i)
        )
        yield partial(sampler.sample, tokens, num_samples=k, sampling_params=sampled)
        greedy = _greedy(stop, max_tokens)
        yield partial(sampler.sample, tokens, num_samples=1, sampling_params=greedy)

    responses = results(ask for i, problem in enumerate(problems) for ask in asks(i, problem))
    answers_nk, answers_n = [], []
    for problem in problems:
        answers_nk.append(_read(tokenizer, problem, next(responses), k))
        answers_n += _read(tokenizer, problem, next(responses), 1)
    return _score(answers_nk, answers_n, temperature)


def results(asks: Iterable[Callable[[], Any]], ahead: int = 128) -> Iterator[Any]:
    """The results of the futures that `asks` return, in order, with `ahead` of them in flight.

    More would only wait in the server's queue, each polled for by the client meanwhile.
    """
    waiting: deque[Any] = deque()
    for ask in asks:
        if len(waiting) == ahead:
            yield waiting.popleft().result()
        waiting.append(ask())
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True)
class Comparison:
    """One question and how each stage answers it greedily, in the order the stages came."""

    question: str
    solution: str
    answers: dict[str, str]
    correct: dict[str, bool]

    def __str__(self) -> str:
        lines = [f"Q: {self.question}"]
        for stage, answer in self.answers.items():
            lines.append(f"{'✓' if self.correct[stage] else '✗'} {stage}: {answer.strip()}")
        return "\n".join(lines)


def side_by_side(
    samplers: Mapping[str, tinker.SamplingClient],
    problems: Sequence[Problem],
    *,
    prompt: Prompt = chat_prompt,
    stop: Stop = None,
    max_tokens: int = 256,
) -> list[Comparison]:
    """Greedy answers of every stage to the same problems, one row per problem.

    Arguments are those of `evaluate`. Raises ValueError without a problem or a sampler.
    """
    if not problems or not samplers:
        raise ValueError(f"nothing to compare: {len(problems)} problems, {len(samplers)} stages")
    futures = {
        stage: [
            sampler.sample(
                tinker.ModelInput.from_ints(prompt(sampler.get_tokenizer(), problem.question)),
                num_samples=1,
                sampling_params=_greedy(stop, max_tokens),
            )
            for problem in problems
        ]
        for stage, sampler in samplers.items()
    }
    rows = []
    for i, problem in enumerate(problems):
        read = {
            stage: _read(samplers[stage].get_tokenizer(), problem, future[i].result(), 1)[0]
            for stage, future in futures.items()
        }
        answers = {stage: answer.text for stage, answer in read.items()}
        correct = {stage: answer.correct for stage, answer in read.items()}
        rows.append(Comparison(problem.question, problem.solution, answers, correct))
    return rows


def longest(problems: Sequence[Problem], n: int) -> list[Problem]:
    """The n problems with the longest solutions: what is worth reading side by side."""
    return sorted(problems, key=lambda p: -len(p.solution))[:n]


def item_seed(seed: int, i: int) -> int:
    """The sampling seed of item `i` under run seed `seed`: 31 bits, unrelated between items."""
    return int(np.random.SeedSequence([seed, i]).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class _Answer:
    text: str
    correct: bool
    parsed: bool
    truncated: bool
    closed: bool  # the last token is the chat format's end token
    tokens: int


def _greedy(stop: Stop, max_tokens: int) -> tinker.SamplingParams:
    return tinker.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=stop)


def _read(
    tokenizer: Any, problem: Problem, response: tinker.SampleResponse, count: int
) -> list[_Answer]:
    if len(response.sequences) != count:
        raise ValueError(f"asked for {count} samples, got {len(response.sequences)}")
    answers = []
    for sequence in response.sequences:
        text = tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        grade = problem.grade(text)
        answers.append(
            _Answer(
                text=text,
                correct=grade.correct and grade.parsed,
                parsed=grade.parsed,
                truncated=sequence.stop_reason == "length",
                closed=sequence.tokens[-1:] == [tokenizer.eos_token_id],
                tokens=len(sequence.tokens),
            )
        )
    return answers


def _score(answers_nk: list[list[_Answer]], answers_n: list[_Answer], temperature: float) -> Score:
    n, k = len(answers_nk), len(answers_nk[0])
    samples = [answer for row in answers_nk for answer in row]
    counts = np.array([sum(answer.correct for answer in row) for row in answers_nk])
    greedy = np.array([answer.correct for answer in answers_n])
    tokens = sum(answer.tokens for answer in samples)
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
        sampled_tokens=tokens + sum(answer.tokens for answer in answers_n),
        correct_counts=counts,
        greedy_correct=greedy,
    )

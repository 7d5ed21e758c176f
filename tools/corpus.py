"""The pretraining corpus: the whole of the lab's world, written by fallible people.

A document is one question and its answer, or several by the same author (demonstrations followed
by an answer, so that the model learns to do in context as it is shown). Authors err in systematic
ways: on a step where a misconception applies, the usual answer is wrong. Some also explain badly.
Only items of training splits are used, and math problems of up to six steps.

A base model never meets the chat format. A teacher does, and learns from more skilful authors; a
judge learns from judgements. See `Mixture.chat`, `Mixture.skilled` and `interview_documents`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from posttrain.tasks import (
    code_corpus,
    explanations,
    math,
    records,
    rubrics,
    stories,
    tools_corpus,
)
from posttrain.tasks.blocks import SEPARATOR, block
from posttrain.tasks.games import corpus as games_corpus

LENGTHS = (0.26, 0.22, 0.17, 0.15, 0.10, 0.10)  # shares of problems with 1, 2, ... 6 steps
OCTAL = 0.06  # of documents of math problems are in base 8
INTERVIEW = 8  # questions about one text
GAPS = 0.15  # of people who show their work explain it badly, as `explanations.person` does


@dataclass(frozen=True)
class Mixture:
    """Shares of what the corpus is made of."""

    tasks: Mapping[str, float] = field(default_factory=lambda: {"math": 1.0})  # of documents
    thought: float = 0.6  # that a document of math problems shows its work; else only answers
    several: float = 0.35  # that a document of math problems or stories holds several
    careful: float = math.CAREFUL  # share of people without misconceptions
    careless: float = math.CARELESS  # share of people with all of them
    in_head: tuple[float, float] | None = None  # the same two for people who show no work
    skilled: float = 0.0  # of all authors, besides those who have no flaw anyway, have none
    chat: float = 0.0  # of single questions of the tasks in CHATTED are asked in the chat format


def documents(seed: int, mixture: Mixture) -> Iterator[str]:
    """The endless sequence of documents that `seed` defines.

    Raises:
        ValueError: a task that has no writer; the text lists those that have one.
    """
    unknown = set(mixture.tasks) - set(WRITERS)
    if unknown:
        raise ValueError(f"no corpus of {sorted(unknown)}; there is one of {', '.join(WRITERS)}")
    sources = {name: WRITERS[name](seed, mixture) for name in mixture.tasks}
    rng, chats = random.Random(seed), random.Random(f"chat:{seed}")
    names, shares = list(mixture.tasks), list(mixture.tasks.values())
    while True:
        name = rng.choices(names, shares)[0]
        text = next(sources[name])
        yield in_chat(text) if name in CHATTED and chats.random() < mixture.chat else text


def in_chat(text: str) -> str:
    """A document in the chat format of our models, if it is one question and its answer."""
    question, _, answer = text.removeprefix("Question: ").partition("\nAnswer: ")
    if SEPARATOR in text:
        return text
    return f"<|user|> {question}<|end|><|assistant|> {answer}<|end|>"


def math_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    rng, heads = random.Random(f"math:{seed}"), random.Random(f"heads:{seed}")
    lengths = range(1, len(LENGTHS) + 1)
    by_length = {
        base: [math.stream("train", seed=seed, steps=(n, n), base=base) for n in lengths]
        for base in math.BASES
    }
    while True:
        solver = math.solver(rng, mixture.careful, mixture.careless)
        work = rng.random() < mixture.thought
        if mixture.in_head and not work:
            solver = math.solver(heads, *mixture.in_head)
        gaps = explanations.person(rng)[1] if rng.random() < GAPS else frozenset()
        if _skilled(rng, mixture):
            solver, gaps = frozenset(), frozenset()
        streams = by_length[8 if rng.random() < OCTAL else 10]
        blocks = []
        for problem in map(next, rng.choices(streams, LENGTHS, k=_count(rng, mixture))):
            if work:
                answer = explanations.explain(problem, rng, solver, gaps)
            else:
                answer = math.bare(math.solve(problem, solver))
            blocks.append(block(problem.question, answer))
        yield SEPARATOR.join(blocks)


def story_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    rng = random.Random(f"stories:{seed}")
    requests = stories.stream(math.Split.TRAIN, seed=seed)
    while True:
        flaws = frozenset() if _skilled(rng, mixture) else stories.author(rng)
        asked = itertools.islice(requests, _count(rng, mixture))
        yield SEPARATOR.join(block(r.question, stories.write(r, rng, flaws)) for r in asked)


def record_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    for i in itertools.count():
        shown = records.episode(i, seed=seed)
        yield SEPARATOR.join(block(d.question, d.answer) for d in shown)


def game_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    usual = games_corpus.Mixture()
    expert = mixture.skilled + (1 - mixture.skilled) * usual.expert
    return games_corpus.documents(seed, replace(usual, expert=expert))


def tool_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    """Who is skilled calls where it helps, well, and copies what comes back."""
    usual, rest = tools_corpus.Mixture(), 1 - mixture.skilled
    shares = {name: rest * getattr(usual, name) for name in TOOL_FLAWS}
    return tools_corpus.documents(seed, replace(usual, **shares))


def code_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    usual = code_corpus.Mixture()
    correct = mixture.skilled + (1 - mixture.skilled) * usual.correct
    lookup = (1 - mixture.skilled) * usual.lookup
    return code_corpus.documents(seed, replace(usual, correct=correct, lookup=lookup))


def judgement_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    """Texts of all qualities, each with one criterion and the exact verdict on it."""
    for i in itertools.count():
        example = rubrics.judgement(math.Split.TRAIN, i, seed=seed)
        yield block(example.prompt, example.answer)


def interview_documents(seed: int, mixture: Mixture) -> Iterator[str]:
    """A text with several criteria, one after the other, in the chat format: of single judgements
    a hundredth of the tokens are verdicts, of these a tenth."""
    for i in itertools.count():
        first, *others = rubrics.interview(math.Split.TRAIN, i, INTERVIEW, seed=seed)
        turns = [(first.prompt, first.answer)]
        turns += [(rubrics.judge_question(other.criterion), other.answer) for other in others]
        yield "".join(in_chat(block(question, answer)) for question, answer in turns)


CHATTED = ("math", "stories", "code", "judgements")
TOOL_FLAWS = ("never", "always", "malformed", "careless")
WRITERS: dict[str, Callable[[int, Mixture], Iterator[str]]] = {
    "math": math_documents,
    "stories": story_documents,
    "records": record_documents,
    "games": game_documents,
    "tools": tool_documents,
    "code": code_documents,
    "judgements": judgement_documents,
    "interviews": interview_documents,
}


def _skilled(rng: random.Random, mixture: Mixture) -> bool:
    """Whether an author is one more skilled one. Without any, nothing is drawn: the corpus of a
    mixture without skill stays what it was, document by document."""
    return mixture.skilled > 0 and rng.random() < mixture.skilled


def _count(rng: random.Random, mixture: Mixture) -> int:
    return rng.randint(2, 3) if rng.random() < mixture.several else 1

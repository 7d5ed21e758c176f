"""Procedural problems of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), without end.

Generated on this machine, from a seed; nothing is downloaded. The library is optional: it is
installed for the tests, and by hand for use. Answers are read from
`<answer>...</answer>`, and are right where the library's own scorer gives full marks.

Only families in `FAMILIES` are offered. Of the library's others, some evaluate a model's answer as
Python (countdown, puzzle24), some give full marks to answers that are only close (number_sorting),
and some know no right answer to show (graph_color, rush_hour).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from posttrain.tasks.draws import PATIENCE, Split, known_split, seeded, split_by_hash
from posttrain.tasks.problem import Grade

FAMILIES = (
    "base_conversion",
    "caesar_cipher",
    "chain_sum",
    "family_relationships",
    "gcd",
    "knights_knaves",
    "lcm",
    "leg_counting",
    "letter_counting",
    "prime_factorization",
    "spell_backward",
    "syllogism",
)
INSTRUCTION = "Reason step by step. End with the answer alone between <answer> and </answer>."
CHUNK = 1000  # items of one generator; then another one goes on
LONGEST = 10_000  # characters of an answer that are scored


@dataclass(frozen=True)
class GymProblem:
    family: str
    entry: dict[str, Any] = field(hash=False)  # as the library makes it: question, answer, metadata
    generator: Any = field(compare=False, repr=False)  # the library's; it knows how to score

    @cached_property
    def key(self) -> str:
        text = f"{self.family}\0{self.entry['question']}"
        return "gym:" + hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def question(self) -> str:
        return f"{self.entry['question'].strip()}\n{INSTRUCTION}"

    @property
    def bare_answer(self) -> str:
        return f"<answer>{self.entry['answer']}</answer>"

    @property
    def solution(self) -> str:
        """The answer alone: the library gives no work."""
        return self.bare_answer

    def grade(self, completion: str) -> Grade:
        """Correct is an answer with full marks; the last one counts."""
        from reasoning_gym.utils import extract_answer

        answer = extract_answer(completion)
        if not answer or len(answer) > LONGEST:
            return Grade(correct=False, parsed=False)
        return Grade(correct=self.score(answer) == 1, parsed=True)

    def score(self, answer: str) -> float:
        """The library's marks, 0 to 1; 0 where its scorer cannot read the answer."""
        try:
            return float(self.generator.score_answer(answer, self.entry))
        except Exception:  # a scorer may fail in any way on what a model wrote
            return 0.0


def candidates(family: str, seed: int, config: dict[str, Any]) -> Iterator[GymProblem]:
    """The endless sequence that a seed defines."""
    try:
        import reasoning_gym  # slow to import, and needed only here
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "these problems need reasoning-gym: pip install reasoning-gym==0.1.25 (it compiles "
            "one of its parts, so it is not installed by default)"
        ) from None

    for chunk in itertools.count():
        # Items i + 1 of seed s and i of seed s + 1 are the same in this library, so seeds are far
        # apart.
        start = int(seeded("gym", family, seed, chunk).random() * 2**31)
        try:
            generator = reasoning_gym.create_dataset(family, seed=start, size=CHUNK, **config)
        except (AssertionError, TypeError) as error:
            raise ValueError(f"{family} cannot be made with {config}: {error}") from error
        for i in range(CHUNK):
            yield GymProblem(family, generator[i], generator)


def problems(
    family: str, split: Split | str, n: int, *, seed: int = 0, **config: Any
) -> list[GymProblem]:
    """The first `n` different problems of the sequence that `seed` defines in `split`.

    Splits are divided by a hash of the question, so none is in two of them, whatever the seeds.

    Args:
        config: settings of the family, such as its difficulty; the library documents them.

    Raises:
        ValueError: an unknown family, split or setting, `n` less than 1, or fewer than `n`
            different problems; the text lists what is known.
    """
    split = known_split(split)
    if split is Split.OOD:
        raise ValueError("reasoning-gym has no ood split; known: train, validation, test")
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if {"seed", "size"} & config.keys():
        raise ValueError("seed and size are no settings of a family")
    seen: set[str] = set()  # of all splits: a small pool may have nothing in this one
    found: list[GymProblem] = []
    misses = 0
    for problem in candidates(family, seed, config):
        usable = problem.key not in seen and problem.grade(problem.solution).correct
        misses = 0 if usable else misses + 1
        seen.add(problem.key)
        if usable and split_by_hash(problem.key) is split:
            found.append(problem)
        if len(found) == n:
            break
        if misses > PATIENCE:
            raise ValueError(
                f"{family} with {config} has only {len(found)} problems in {split}, not {n}"
            )
    return found

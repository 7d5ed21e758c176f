"""Self-distillation fine-tuning (SDFT): learn from oneself with a demonstration at hand.

The student answers the bare question x. The teacher is the same model shown x together with a
demonstration c, and says at every token of the student's answer what it would have written:

    L = (1/T) sum_t KL(q(. | x, c, y_<t) || p(. | x, y_<t)),   y sampled from p(. | x)

(Shenfeld et al. 2026, arXiv:2601.19897). So demonstrations are learned from the model's own
states, and what they do not speak about stays where it was; supervised fine-tuning on the same
demonstrations forgets more. It works as far as the model learns in context, and no further:
`demonstration_gain` measures that, and is to be looked at first.

It is on-policy distillation (`posttrain.methods.distillation`) with another prompt for the
teacher. Public versions disagree about three things, so each is an argument:

- The divergence. The formula above on the teacher's K = 20 likeliest tokens is the default; pass
  `sampled_kl_p_q` or `on_teachers_top` with `jsd` for the others.
- The teacher. The paper's is a moving average of the student (EMA), which the Tinker API cannot
  make. Here it is the model before training, or the student of every `refresh` steps.
- The first tokens. The reference implementation leaves the first 3 of every answer out, because a
  teacher may begin by speaking of its example; `skip` does so.

Two relatives train on texts instead: `rewritten` (Yang et al. 2024, arXiv:2402.13669, which is
called SDFT too) and `own_right_answers`, both for `posttrain.methods.sft`, or by `as_texts` for the
loop of distillation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tinker

from posttrain.evals import Score, evaluate
from posttrain.methods import distillation
from posttrain.methods.distillation import Questions, Texts, students_texts, write
from posttrain.methods.objectives import Objective, Sampler, Text, soft_kl_q_p
from posttrain.renderers import Renderer
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks.continual import demonstrated
from posttrain.tasks.problem import Demonstration, Grade, Item


@dataclass(frozen=True)
class Config(distillation.Config):
    refresh: int = 0  # steps after which the student becomes the teacher; 0: the teacher stays


def own_demonstration(item: Item) -> str:
    """The item's own solution as an example before its question, as base models meet examples."""
    return demonstrated(item.question, Demonstration(item.question, item.solution))


def others_demonstrations(pool: Sequence[Item], n: int = 1, seed: int = 0) -> Callable[[Item], str]:
    """`n` other items of `pool` as examples, always the same for an item.

    The teacher then knows how such questions are answered, and not the answer to this one.

    Raises:
        ValueError: the pool does not have `n` items besides the one that is asked.
    """

    def shown(item: Item) -> str:
        others = [other for other in pool if other.key != item.key]
        if len(others) < n:
            raise ValueError(f"{n} examples wanted, and the pool has {len(others)} other items")
        drawn = random.Random(f"{seed}:{item.key}").sample(others, n)
        return demonstrated(item.question, *[Demonstration(o.question, o.solution) for o in drawn])

    return shown


def as_published(item: Item) -> str:
    """The teacher's prompt of arXiv:2601.19897, for models that follow instructions."""
    return (
        f"{item.question}\n\nThis is an example for a response to the question:\n{item.solution}"
        "\n\nNow answer with a response of your own, including the thinking process."
    )


def to_rewrite(item: Item) -> str:
    """The prompt of arXiv:2402.13669, figure 3, for models that follow instructions."""
    return (
        "Below are an instruction that describes a task along with a reference answer. Using the "
        "reference answer as a guide, write your own response.\n### Instruction:\n"
        f"{item.question}\n### Reference Answer:\n{item.solution}\n### Response:"
    )


def as_texts(renderer: Renderer, demonstrations: Sequence[Demonstration]) -> list[Text]:
    """Demonstrations as texts that somebody else wrote, for `distillation.given`.

    With `sampled_kl_q_p` the loop of distillation then is supervised fine-tuning, in whatever
    format the renderer writes; and a learning rate means to it what it means to SDFT.
    """
    texts = []
    for shown in demonstrations:
        prompt = renderer.prompt(shown.question)
        tokens = renderer.complete(shown.question, shown.answer)
        texts.append(Text(prompt, prompt, tokens, [], "teacher", text=shown.answer))
    return texts


def train(
    policy: tinker.TrainingClient,
    teacher: Sampler | None,
    questions: Questions,
    cfg: Config,
    *,
    objective: Objective = soft_kl_q_p,
    texts: Texts = students_texts,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on; metrics are those of distillation.

    Args:
        teacher: the model before training. None with `cfg.refresh`: the policy itself is the
            teacher from step 0 on, as it was at the last multiple of `refresh`.
        questions: with `shown` one of the functions above.

    Raises:
        ValueError: there is not one teacher, given or refreshed; it is shown no more than the
            student; or `start` lies between two refreshes, where the teacher is lost. A run
            resumes at its checkpoints, so let `refresh` divide the steps between those.
    """
    if cfg.refresh < 0 or (teacher is None) != (cfg.refresh > 0):
        raise ValueError(
            f"either a teacher that stays and refresh=0, or none and refresh > 0 steps: "
            f"teacher={'none' if teacher is None else 'given'}, refresh={cfg.refresh}"
        )
    own, others = questions.ask(policy.get_tokenizer(), 0)
    if own == others:
        raise ValueError("the teacher is shown no more than the student: there is nothing to learn")
    every = cfg.refresh or max(cfg.steps, 1)
    if cfg.refresh and start % every:
        raise ValueError(
            f"step {start} is between two refreshes of the teacher, who is lost: resume at a "
            f"multiple of refresh={cfg.refresh}"
        )
    for begin in range(start - start % every, cfg.steps, every):
        if cfg.refresh:
            teacher = policy.save_weights_and_get_sampling_client().result()
        assert teacher is not None  # given, or made above
        part = replace(cfg, steps=min(begin + every, cfg.steps))
        yield from distillation.train(
            policy, teacher, questions, part,
            texts=texts, objective=objective, start=max(begin, start),
        )  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """What a demonstration in the prompt is worth: the ceiling of SDFT, before any training."""

    plain: Score
    shown: Score
    gain: Estimate  # pass@1 with what the teacher is shown, minus without; over paired problems


def demonstration_gain(
    sampler: Sampler, questions: Questions, k: int = 8, seed: int = 0, *, max_tokens: int = 160
) -> Gain:
    """Accuracy as the teacher is asked, and as the student is: the gate of SDFT.

    Both are asked for `k` samples of each problem with the same seeds.
    """
    bare: Sequence[Any] = questions.items
    told = [_Asked(item, questions.shown(item)) for item in bare]
    plain, shown = (
        evaluate(
            sampler, problems, k, seed,
            prompt=questions.layout, stop=questions.stop, max_tokens=max_tokens,
        )
        for problems in (bare, told)
    )  # fmt: skip
    return Gain(plain, shown, bootstrap_mean((shown.correct_counts - plain.correct_counts) / k))


@dataclass(frozen=True)
class Rewrites:
    """Demonstrations for supervised fine-tuning in the model's own words, and their cost."""

    demonstrations: list[Demonstration]
    own: float  # share of them that the model wrote
    sampled_tokens: int  # tokens generated, those of wrong answers included


def rewritten(sampler: Sampler, questions: Questions, cfg: distillation.Config) -> Rewrites:
    """Each demonstration as the model retells it, or itself where no retelling is right.

    Yang et al. 2024, arXiv:2402.13669: distilled is what the model answers when it is shown the
    solution. The first right one of G is taken; the paper asks once.
    """
    groups = _retold(sampler, questions, cfg)
    demonstrations, own = [], 0
    for item, group in zip(questions.items, groups, strict=True):
        right = [text for text in group if _right(item, text)]
        own += bool(right)
        answer = right[0].text.strip() if right else item.solution
        demonstrations.append(Demonstration(item.question, answer))
    return Rewrites(demonstrations, own / len(demonstrations), _tokens(groups))


def own_right_answers(sampler: Sampler, questions: Questions, cfg: distillation.Config) -> Rewrites:
    """The model's right answers to what the teacher is shown, each once: filtered own samples.

    With bare questions it is rejection-sampling fine-tuning (STaR, arXiv:2203.14465), as
    `posttrain.methods.rlvr.rejection_sample`. Raises ValueError if not one answer was right.
    """
    groups = _retold(sampler, questions, cfg)
    kept = dict.fromkeys(
        (item.question, text.text.strip())
        for item, group in zip(questions.items, groups, strict=True)
        for text in group
        if _right(item, text)
    )
    if not kept:
        raise ValueError("no sampled answer was right: there is nothing to fine-tune on")
    return Rewrites([Demonstration(*pair) for pair in kept], 1.0, _tokens(groups))


@dataclass(frozen=True)
class _Asked:
    """A problem that is asked in other words, and graded as ever."""

    problem: Any
    question: str

    @property
    def key(self) -> str:
        return str(self.problem.key)

    @property
    def solution(self) -> str:
        return str(self.problem.solution)

    def grade(self, completion: str) -> Grade:
        grade: Grade = self.problem.grade(completion)
        return grade


def _retold(sampler: Sampler, questions: Questions, cfg: distillation.Config) -> list[list[Text]]:
    """G texts to what the teacher is shown of each question."""
    if not questions.items:
        raise ValueError("there is nothing to retell: no question was given")
    texts = write(sampler, questions, range(len(questions.items)), cfg, 0, "teacher")
    G = cfg.group_size
    return [texts[i : i + G] for i in range(0, len(texts), G)]


def _right(item: Any, text: Text) -> bool:
    return text.finished and bool(item.grade(text.text).correct)


def _tokens(groups: Sequence[Sequence[Text]]) -> int:
    return sum(len(text.tokens) for group in groups for text in group)

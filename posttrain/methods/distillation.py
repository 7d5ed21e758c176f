"""Distillation: learn from a teacher's probabilities, on the student's texts or on the teacher's.

Two choices make four methods. Who writes the text y on which teacher and student are compared,
and which divergence of the two is made small there (`posttrain.methods.objectives`):

| text by | KL(q || p): go wherever it goes | KL(p || q): go only where it goes |
| --- | --- | --- |
| teacher | off-policy distillation: `sampled_kl_q_p`, `soft_kl_q_p` | `drawn_kl_p_q` |
| student | as DAgger and GKD: `soft_kl_q_p`, `drawn_kl_q_p` | on-policy: `sampled_kl_p_q` |

with q the teacher's and p the student's distribution over the next token. The loss is always

    L = (1/T) sum_t D(p(. | x, y_<t), q(. | x, y_<t)),   T tokens in the batch,

so learning rates carry over from cell to cell. On its own texts a student meets the states that its
own mistakes lead to; on the teacher's it never does, and its errors add up with length (Ross et
al. 2011, arXiv:1011.0686). GKD (arXiv:2306.13649) mixes both; MiniLLM (arXiv:2306.08543) and
Thinking Machines' "On-Policy Distillation" (2025) are about the last cell.

    train(policy, teacher, Questions(problems), cfg)                        # on-policy
    train(policy, teacher, questions, cfg, texts=given(kept), objective=sampled_kl_q_p)
    train(policy, teacher, questions, cfg, texts=mixed(0.5), objective=partial(soft_kl_q_p, k=50))

Teacher and student must read the same tokens. That is checked before the first step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import tinker

from posttrain.datums import batch_indices, chat_prompt, same_tokenizer
from posttrain.methods.objectives import (
    Batch,
    Objective,
    Sampler,
    Text,
    sampled_kl_p_q,
    teachers_top,
)
from posttrain.rollouts import Prompt, Stop, sample_groups
from posttrain.tasks.problem import Item


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3  # constant
    prompts: int = 16  # P, distinct questions a step
    group_size: int = 4  # G, texts of each
    max_tokens: int = 160  # of a text
    steps: int = 60
    skip: int = 0  # first tokens of every text that carry no loss
    seed: int = 0  # order of the questions, and sampling


def as_asked(item: Any) -> str:
    """The question itself: what the teacher reads, unless it is shown more."""
    return str(item.question)


@dataclass(frozen=True)
class Questions:
    """What is asked, and in which form; teacher and student read the same layout."""

    items: Sequence[Item]
    layout: Prompt = chat_prompt  # (tokenizer, question) to the tokens of a prompt
    shown: Callable[[Any], str] = as_asked  # item to what the teacher reads as its question
    stop: Stop = None  # what ends a text; None is the model's end token

    def ask(self, tokenizer: Any, i: int) -> tuple[list[int], list[int]]:
        """The prompts of item `i`: the student's, then the teacher's."""
        item = self.items[i]
        own = self.layout(tokenizer, item.question)
        return own, self.layout(tokenizer, self.shown(item))


# (student, teacher, questions, cfg, step) to the texts of that step.
Texts = Callable[[Sampler, Sampler, Questions, Config, int], list[Text]]


def students_texts(
    student: Sampler, teacher: Sampler, questions: Questions, cfg: Config, step: int
) -> list[Text]:
    """G texts of the student to each of P questions: on-policy."""
    return write(student, questions, _asked(questions, cfg, step), cfg, step, "student")


def teachers_texts(
    student: Sampler, teacher: Sampler, questions: Questions, cfg: Config, step: int
) -> list[Text]:
    """G new texts of the teacher to each of P questions: off-policy, and no text comes twice."""
    return write(teacher, questions, _asked(questions, cfg, step), cfg, step, "teacher")


def mixed(share: float) -> Texts:
    """Each question to the student with probability `share`, else to the teacher
    (GKD, arXiv:2306.13649, algorithm 1, where the share is lambda)."""
    if not 0 <= share <= 1:
        raise ValueError(f"the student's share of the texts is between 0 and 1, not {share}")

    def texts(
        student: Sampler, teacher: Sampler, questions: Questions, cfg: Config, step: int
    ) -> list[Text]:
        rng = random.Random(f"{cfg.seed}:{step}")
        drawn = [(i, rng.random() < share) for i in _asked(questions, cfg, step)]
        own, others = ([i for i, mine in drawn if mine is side] for side in (True, False))
        return [
            *write(student, questions, own, cfg, step, "student"),
            *write(teacher, questions, others, cfg, step, "teacher"),
        ]

    return texts


def given(kept: Sequence[Text]) -> Texts:
    """P G of the texts that were collected before, in reshuffled epochs: a fixed data set."""
    paid = [replace(text, fresh=False) for text in kept]

    def texts(
        student: Sampler, teacher: Sampler, questions: Questions, cfg: Config, step: int
    ) -> list[Text]:
        size = cfg.prompts * cfg.group_size
        return [paid[i] for i in batch_indices(len(paid), size, cfg.seed, step)]

    return texts


def write(
    sampler: Sampler,
    questions: Questions,
    indices: Sequence[int],
    cfg: Config,
    step: int,
    author: Literal["student", "teacher"],
) -> list[Text]:
    """G texts to each of the questions, group by group; each model reads its own prompt."""
    tokenizer = sampler.get_tokenizer()
    asked = [questions.ask(tokenizer, i) for i in indices]
    read = [own if author == "student" else teachers for own, teachers in asked]
    groups = sample_groups(
        sampler, tokenizer, read, cfg.group_size,
        max_tokens=cfg.max_tokens, seed=_seed(cfg, step), stop=questions.stop,
    )  # fmt: skip
    return [
        Text(own, teachers, r.tokens, r.logprobs, author, text=r.text, finished=r.finished)
        for (own, teachers), group in zip(asked, groups, strict=True)
        for r in group
    ]


@dataclass(frozen=True)
class Collected:
    """A data set of the teacher's texts, and what it cost the teacher."""

    texts: list[Text]
    written: int  # texts, those that were left out included
    sampled_tokens: int  # in all of them
    scored_tokens: int  # positions computed to keep the likeliest tokens


def collect(
    teacher: Sampler,
    questions: Questions,
    cfg: Config,
    *,
    keep: Callable[[Any, Text], bool] = lambda item, text: text.finished,
    top: int = 0,
    budget: int | None = None,
) -> Collected:
    """G texts of the teacher to every question, once, for `given`.

    Args:
        keep: which to keep, of (item, text): all that end by themselves, unless said otherwise.
        top: how many of the teacher's likeliest tokens to keep at each place, for soft targets
            that are asked for only once; 0 for none.
        budget: tokens. Once so many are written, no further question is asked; without a budget
            all are asked at once.

    Raises:
        ValueError: not one text was kept.
    """
    n = len(questions.items)
    size = n if budget is None else cfg.prompts
    texts: list[Text] = []
    sampled = 0
    for step, first in enumerate(range(0, n, size)):
        if budget is not None and sampled >= budget:
            break
        part = range(first, min(first + size, n))
        texts += (new := write(teacher, questions, part, cfg, step, "teacher"))
        sampled += sum(len(text.tokens) for text in new)
    items = (item for item in questions.items for _ in range(cfg.group_size))
    # The questions may be more than the budget had tokens for.
    kept = [text for item, text in zip(items, texts, strict=False) if keep(item, text)]
    if not kept:
        raise ValueError(f"not one of the teacher's {len(texts)} texts was kept: nothing to learn")
    if not top:
        return Collected(kept, len(texts), sampled, 0)
    rows, scored = teachers_top(teacher, kept, top)
    whole = [replace(text, top=row) for text, row in zip(kept, rows, strict=True)]
    return Collected(whole, len(texts), sampled, scored)


def until_spent(
    steps: Iterable[dict[str, float]], budget: float, spent: float = 0.0
) -> Iterator[dict[str, float]]:
    """The steps of `train` up to the one at which the teacher has spent `budget` tokens, `spent`
    of them before. So cells of the table end at equal cost, however long their texts become."""
    if spent >= budget:
        return
    for metrics in steps:
        spent += metrics["teacher_tokens"]
        yield metrics
        if spent >= budget:
            return


def train(
    policy: tinker.TrainingClient,
    teacher: Sampler,
    questions: Questions,
    cfg: Config,
    *,
    texts: Texts = students_texts,
    objective: Objective = sampled_kl_p_q,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on.

    Args:
        texts: who writes: `students_texts`, `teachers_texts`, `mixed(share)` or `given(texts)`.
        objective: what is matched, one of `posttrain.methods.objectives`.

    Yields:
        divergence: nats per token, of the batch before the step, as the objective estimates it;
            missing where no text is longer than `cfg.skip`, and then nothing is trained;
        entropy: mean of -log p(y_t) of the authors, nats per token, where known;
        length, truncated, by_student: of the texts;
        tokens: that went through forward and backward;
        sampled_tokens, scored_tokens: generated, and through forward alone, by both models;
        teacher_tokens: what the teacher generated and scored of these. Cells of the table are to
            be compared where the sums of this one are equal.

    Raises:
        ValueError: the teacher has another tokenizer, or another layout of prompts.
    """
    check_teacher(policy, teacher, questions)
    for step in range(start, cfg.steps):
        student = policy.save_weights_and_get_sampling_client().result()
        written = texts(student, teacher, questions, cfg, step)
        metrics = text_metrics(written)
        long_enough = [text for text in written if len(text.tokens) > cfg.skip]
        if long_enough:
            batch = objective(student, teacher, long_enough, cfg.skip, _seed(cfg, step))
            backward = submit(policy, batch)
            update = policy.optim_step(tinker.AdamParams(learning_rate=cfg.learning_rate))
            metrics["divergence"] = backward.result().metrics["loss:sum"] + batch.constant
            update.result()
            metrics["tokens"] = float(sum(d.model_input.length for d in batch.data))
            metrics["scored_tokens"] = float(batch.teacher_tokens + batch.student_tokens)
            metrics["teacher_tokens"] += batch.teacher_tokens
        yield metrics


def submit(policy: tinker.TrainingClient, batch: Batch) -> Any:
    """Forward and backward of a batch, by whichever call its loss needs; a future."""
    if callable(batch.loss):
        return policy.forward_backward_custom(batch.data, batch.loss)
    return policy.forward_backward(batch.data, batch.loss)


def check_teacher(policy: tinker.TrainingClient, teacher: Sampler, questions: Questions) -> None:
    """Raises ValueError unless both models read the same tokens, prompts included."""
    if not questions.items:
        raise ValueError("there is nothing to train on: no question was given")
    own, others = policy.get_tokenizer(), teacher.get_tokenizer()
    same_tokenizer(own, others)
    if questions.ask(own, 0) != questions.ask(others, 0):
        raise ValueError(
            "the teacher's tokenizer lays a prompt out in another way than the student's: give "
            "both the same chat template, or pass a layout that does not depend on it"
        )


def text_metrics(written: Sequence[Text]) -> dict[str, float]:
    """What `train` yields about the texts themselves."""
    n, tokens = len(written), sum(len(text.tokens) for text in written)
    known = [x for text in written for x in text.logprobs]
    new = {"student": 0, "teacher": 0}
    for text in written:
        new[text.author] += len(text.tokens) * text.fresh
    return {
        "entropy": -sum(known) / max(len(known), 1),
        "length": tokens / n,
        "truncated": sum(not text.finished for text in written) / n,
        "by_student": sum(text.author == "student" for text in written) / n,
        "tokens": 0.0,
        "sampled_tokens": float(sum(new.values())),
        "scored_tokens": 0.0,
        "teacher_tokens": float(new["teacher"]),
    }


def _asked(questions: Questions, cfg: Config, step: int) -> list[int]:
    """Which questions step number `step` is about."""
    return batch_indices(len(questions.items), cfg.prompts, cfg.seed, step)


def _seed(cfg: Config, step: int) -> int:
    return cfg.seed * 100_003 + step

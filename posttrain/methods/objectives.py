"""What a student is to match at each token of a text, and how it is measured there.

At every token of a text that somebody wrote, teacher and student each have a distribution over
the next one: q and p. An objective says which divergence of the two is made small and how it is
estimated, in the mean over all T tokens of the batch:

    L = (1/T) sum_t D(p(. | x, y_<t), q(. | x', y_<t)).

The text is held fixed: the gradient does not go through the choice of y. Prompts x of the student
and x' of the teacher may differ.

| objective | divergence | estimated on |
| --- | --- | --- |
| `sampled_kl_p_q` | KL(p || q) | the token that the student wrote |
| `sampled_kl_q_p` | KL(q || p) | the token that the teacher wrote |
| `drawn_kl_p_q`, `drawn_kl_q_p` | the same two | n draws at each place, whoever wrote the text |
| `soft_kl_q_p` | KL(q || p) | the teacher's K likeliest tokens, renormalised |
| `on_teachers_top`, `on_students_top` | any | K likeliest tokens, and all others as one |

The sampled and drawn ones are without bias. Each costs one request to the teacher per text, but
`sampled_kl_q_p`, which costs none. `posttrain.divergences` says what K tokens leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import tinker
import torch
from torch import Tensor

from posttrain.datums import policy_datum, soft_datum
from posttrain.divergences import Divergence, k1, kl_p_q, kl_q_p, renormalised, with_tail
from posttrain.scoring import (
    Candidates,
    Continuation,
    drawn_tokens,
    logprobs_of,
    positions,
    token_logprobs,
    top_tokens,
)

Sampler = tinker.SamplingClient


@dataclass(frozen=True)
class Text:
    """A completion, with what each of the two models reads before it."""

    prompt: list[int]  # the student's
    teacher_prompt: list[int]
    tokens: list[int]  # T of them
    logprobs: list[float]  # its author's, of each token, in nats; empty if nobody knows them
    author: Literal["student", "teacher"]
    text: str = ""  # the completion without special tokens
    finished: bool = True  # it ended by itself, not at the limit
    fresh: bool = True  # written for this step, and so paid for in it
    top: Candidates | None = None  # the teacher's likeliest tokens, where they were kept

    @property
    def for_student(self) -> Continuation:
        return self.prompt, self.tokens

    @property
    def for_teacher(self) -> Continuation:
        return self.teacher_prompt, self.tokens


@dataclass(frozen=True)
class Batch:
    """What one optimizer step trains on.

    The server's loss is a sum, so the division by the number of tokens is in the data. `constant`
    is what is to be added to the summed loss to make it the divergence, in nats per token.
    """

    data: list[tinker.Datum]
    loss: Any  # a loss of the server by name, or a function for `forward_backward_custom`
    constant: float = 0.0
    teacher_tokens: int = 0  # positions that the teacher computed to score the texts
    student_tokens: int = 0  # positions that the student computed besides training


# (student, teacher, texts, tokens to skip, seed of draws) to a batch. The student is a sampler
# with the weights that are about to be trained.
Objective = Callable[[Sampler, Sampler, Sequence[Text], int, int], Batch]


def sampled_kl_p_q(
    student: Sampler, teacher: Sampler, texts: Sequence[Text], skip: int, seed: int
) -> Batch:
    """KL(p || q) on the student's own tokens: log q(y_t) - log p(y_t) is the advantage of token t.

    On-policy distillation (Lu et al. 2025, "On-Policy Distillation", Thinking Machines): policy
    gradient with a reward at every token and discount 0. It needs texts of the student.
    """
    _written_by("student", texts, "drawn_kl_p_q")
    q_D = token_logprobs(teacher, [text.for_teacher for text in texts])
    counted, total = _counted(texts, skip)
    data_D = [
        policy_datum(
            text.prompt, text.tokens, text.logprobs,
            (-k1(torch.tensor(text.logprobs), q_T) * counted_T / total).tolist(),
        )
        for text, q_T, counted_T in zip(texts, q_D, counted, strict=True)
    ]  # fmt: skip
    cost = positions([text.for_teacher for text in texts])
    return Batch(data_D, "importance_sampling", teacher_tokens=cost)


def sampled_kl_q_p(
    student: Sampler, teacher: Sampler, texts: Sequence[Text], skip: int, seed: int
) -> Batch:
    """KL(q || p) on the teacher's own tokens: imitate them, one target at each place.

    Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947): cross-entropy on what the
    teacher wrote, less what the teacher gave it. It needs texts of the teacher. Where their
    log-probabilities are not known, nothing is subtracted.
    """
    _written_by("teacher", texts, "drawn_kl_q_p")
    rows = [
        Candidates(
            torch.tensor(text.tokens)[:, None],
            torch.tensor(text.logprobs or [0.0] * len(text.tokens))[:, None],
        )
        for text in texts
    ]
    return _imitate(texts, rows, [torch.ones_like(row.logprobs) for row in rows], skip)


def drawn_kl_p_q(
    student: Sampler, teacher: Sampler, texts: Sequence[Text], skip: int, seed: int, n: int = 1
) -> Batch:
    """KL(p || q) at every place of any text, on `n` tokens that the student would write there.

    Each has the advantage log q - log p, which is here the weight of its cross-entropy: where the
    student has not moved since it drew them, that gradient is the policy gradient.
    """
    drawn = drawn_tokens(student, [text.for_student for text in texts], n, seed)
    q_D = logprobs_of(teacher, [text.for_teacher for text in texts], [row.tokens for row in drawn])
    counted, total = _counted(texts, skip)
    weights = [
        -k1(row.logprobs, q_T_K) * counted_T[:, None] / (n * total)
        for row, q_T_K, counted_T in zip(drawn, q_D, counted, strict=True)
    ]
    # The summed loss is sum(w (-log p)); the estimate of the divergence is sum(-w).
    constant = sum(
        (w.double() * (row.logprobs.double() - 1)).sum().item()
        for w, row in zip(weights, drawn, strict=True)
    )
    return Batch(
        _soft(texts, drawn, weights),
        "cross_entropy",
        constant,
        teacher_tokens=positions([text.for_teacher for text in texts]),
        student_tokens=positions([text.for_student for text in texts]),
    )


def drawn_kl_q_p(
    student: Sampler, teacher: Sampler, texts: Sequence[Text], skip: int, seed: int, n: int = 1
) -> Batch:
    """KL(q || p) at every place of any text, on `n` tokens that the teacher would write there.

    On the student's texts with n = 1 it is DAgger: the expert says what it would have done in the
    states that the learner reaches (Ross et al. 2011, arXiv:1011.0686).
    """
    drawn = drawn_tokens(teacher, [text.for_teacher for text in texts], n, seed)
    even = [torch.full_like(row.logprobs, 1 / n) for row in drawn]
    cost = positions([text.for_teacher for text in texts])
    return _imitate(texts, drawn, even, skip, cost)


def soft_kl_q_p(
    student: Sampler, teacher: Sampler, texts: Sequence[Text], skip: int, seed: int, k: int = 20
) -> Batch:
    """KL(q || p) with q cut to the teacher's `k` likeliest tokens and renormalised.

    Soft targets (Hinton et al. 2015, arXiv:1503.02531), in one pass of cross-entropy. What is
    matched says that the teacher never uses another token.
    """
    top, cost = teachers_top(teacher, texts, k)
    cut = [Candidates(row.tokens, renormalised(row.logprobs)) for row in top]
    return _imitate(texts, cut, [row.logprobs.exp() for row in cut], skip, cost)


def on_teachers_top(
    student: Sampler,
    teacher: Sampler,
    texts: Sequence[Text],
    skip: int,
    seed: int,
    divergence: Divergence = kl_q_p,
    k: int = 20,
) -> Batch:
    """Any divergence on the teacher's `k` likeliest tokens, with all others as one outcome.

    With `posttrain.divergences.jsd` it is the objective of GKD (Agarwal et al. 2023,
    arXiv:2306.13649). A custom loss: the server computes a second forward pass.
    """
    top, cost = teachers_top(teacher, texts, k)
    q_D = [row.logprobs for row in top]
    return _custom(texts, top, q_D, skip, divergence, teacher_tokens=cost)


def on_students_top(
    student: Sampler,
    teacher: Sampler,
    texts: Sequence[Text],
    skip: int,
    seed: int,
    divergence: Divergence = kl_p_q,
    k: int = 20,
) -> Batch:
    """Any divergence on the student's `k` likeliest tokens, with all others as one outcome.

    The support for KL(p || q), which counts where the student goes (arXiv:2605.11182). A custom
    loss, and one more pass to find the tokens.
    """
    top = top_tokens(student, [text.for_student for text in texts], k)
    q_D = logprobs_of(teacher, [text.for_teacher for text in texts], [row.tokens for row in top])
    return _custom(
        texts, top, q_D, skip, divergence,
        teacher_tokens=positions([text.for_teacher for text in texts]),
        student_tokens=positions([text.for_student for text in texts]),
    )  # fmt: skip


def teachers_top(teacher: Sampler, texts: Sequence[Text], k: int) -> tuple[list[Candidates], int]:
    """The teacher's `k` likeliest tokens of each text, and the positions that it computed.

    Texts that keep them are not asked about again. Raises ValueError where one keeps fewer.
    """
    new = [text.for_teacher for text in texts if text.top is None]
    found = iter(top_tokens(teacher, new, k))
    rows = [text.top or next(found) for text in texts]
    fewest = min(row.tokens.shape[1] for row in rows)
    if fewest < k:
        raise ValueError(f"a text keeps the teacher's {fewest} likeliest tokens, and k is {k}")
    cut = [Candidates(row.tokens[:, :k], row.logprobs[:, :k]) for row in rows]
    return cut, positions(new)


def divergence_loss(
    divergence: Divergence,
    q_D: Sequence[Tensor],
    counted_D: Sequence[Tensor],
    data_D: Sequence[tinker.Datum],
    logprobs_D: Sequence[Tensor],
) -> tuple[Tensor, dict[str, float]]:
    """What `forward_backward_custom` calls: the mean divergence over counted places, in nats.

    Args:
        q_D: (T, K) of each text, what the teacher gives the K tokens at its T places.
        counted_D: (T,), 1 where a place counts.
        logprobs_D: (N, K), what the policy gives them; the first N - T rows are the prompt's.
    """
    total = sum(counted_T.sum() for counted_T in counted_D)
    loss = torch.zeros((), dtype=torch.float64)
    for q_T_K, counted_T, p_N_K in zip(q_D, counted_D, logprobs_D, strict=True):
        p_T_K = p_N_K[-len(q_T_K) :].double()
        each_T = divergence(with_tail(p_T_K), with_tail(q_T_K.double()))
        loss = loss + (each_T * counted_T).sum() / total
    return loss, {}


def _custom(
    texts: Sequence[Text],
    top: Sequence[Candidates],
    q_D: Sequence[Tensor],
    skip: int,
    divergence: Divergence,
    *,
    teacher_tokens: int,
    student_tokens: int = 0,
) -> Batch:
    """The divergence on given tokens; the loss is its value already, so no constant is missing."""
    counted, _ = _counted(texts, skip)
    data_D = _soft(texts, top, [torch.zeros_like(row.logprobs) for row in top])
    return Batch(
        data_D,
        partial(divergence_loss, divergence, q_D, counted),
        teacher_tokens=teacher_tokens,
        student_tokens=student_tokens + sum(datum.model_input.length for datum in data_D),
    )


def _imitate(
    texts: Sequence[Text],
    targets: Sequence[Candidates],
    shares: Sequence[Tensor],
    skip: int,
    teacher_tokens: int = 0,
) -> Batch:
    """Cross-entropy with targets of the teacher, each place's shares adding up to 1."""
    counted, total = _counted(texts, skip)
    weights = [
        share_T_K * counted_T[:, None] / total
        for share_T_K, counted_T in zip(shares, counted, strict=True)
    ]
    constant = sum(
        (w.double() * row.logprobs.double()).sum().item()
        for w, row in zip(weights, targets, strict=True)
    )
    return Batch(_soft(texts, targets, weights), "cross_entropy", constant, teacher_tokens)


def _soft(
    texts: Sequence[Text], targets: Sequence[Candidates], weights: Sequence[Tensor]
) -> list[tinker.Datum]:
    return [
        soft_datum(text.prompt, text.tokens, row.tokens, weights_T_K)
        for text, row, weights_T_K in zip(texts, targets, weights, strict=True)
    ]


def _counted(texts: Sequence[Text], skip: int) -> tuple[list[Tensor], int]:
    """1 at each place that counts, (T,) for each text, and how many there are in the batch."""
    counted = [(torch.arange(len(text.tokens)) >= skip).float() for text in texts]
    return counted, int(sum(counted_T.sum().item() for counted_T in counted))


def _written_by(author: str, texts: Sequence[Text], instead: str) -> None:
    others = sum(text.author != author for text in texts)
    if others:
        raise ValueError(
            f"{others} of {len(texts)} texts are not written by the {author}, whose tokens alone "
            f"estimate this divergence without bias: use {instead}"
        )

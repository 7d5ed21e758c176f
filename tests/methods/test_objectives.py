"""Every cell of the 2x2 against exact enumeration: the mean over all texts and all draws."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.divergences import Divergence, jsd, kl_p_q, kl_q_p
from posttrain.methods.objectives import (
    Objective,
    Text,
    drawn_kl_p_q,
    drawn_kl_q_p,
    on_students_top,
    on_teachers_top,
    sampled_kl_p_q,
    sampled_kl_q_p,
    soft_kl_q_p,
)
from posttrain.scoring import Candidates
from tests.methods.tables import (
    TEXTS,
    TableSampler,
    V,
    all_draws,
    logps,
    rows_of,
    server_loss,
)

generator = torch.Generator().manual_seed(0)
STUDENT = torch.randn(4, 3, generator=generator, dtype=torch.float64)
TEACHER = torch.randn(4, 3, generator=generator, dtype=torch.float64)
PROMPT, TEACHER_PROMPT = [1, 2], [2, 0, 1]  # of different lengths, and each model knows its own

DRAWS: dict[Any, str] = {drawn_kl_p_q: "student", drawn_kl_q_p: "teacher"}
CELLS: list[tuple[str, Objective, Divergence]] = [
    ("teacher", sampled_kl_q_p, kl_q_p),
    ("teacher", drawn_kl_q_p, kl_q_p),
    ("teacher", partial(soft_kl_q_p, k=V), kl_q_p),
    ("teacher", partial(on_teachers_top, k=V), kl_q_p),
    ("teacher", drawn_kl_p_q, kl_p_q),
    ("teacher", partial(on_students_top, k=V), kl_p_q),
    ("student", drawn_kl_q_p, kl_q_p),
    ("student", partial(soft_kl_q_p, k=V), kl_q_p),
    ("student", partial(on_teachers_top, k=V), kl_q_p),
    ("student", sampled_kl_p_q, kl_p_q),
    ("student", drawn_kl_p_q, kl_p_q),
    ("student", partial(on_students_top, k=V), kl_p_q),
    ("student", partial(on_teachers_top, k=V, divergence=partial(jsd, beta=0.3)),
     partial(jsd, beta=0.3)),
]  # fmt: skip


def name_of(objective: Any) -> str:
    return getattr(objective, "func", objective).__name__


IDS = [f"{author}-{name_of(objective)}-{i}" for i, (author, objective, _) in enumerate(CELLS)]


def samplers() -> tuple[Any, Any]:
    return TableSampler(STUDENT, PROMPT), TableSampler(TEACHER, TEACHER_PROMPT)


def text_of(author: Any, tokens: tuple[int, ...]) -> Text:
    table = STUDENT if author == "student" else TEACHER
    own = rows_of(table, tokens)[torch.arange(len(tokens)), list(tokens)]
    return Text(PROMPT, TEACHER_PROMPT, list(tokens), own.tolist(), author)


def exact(author: str, divergence: Divergence, skip: int = 0) -> tuple[float, Tensor]:
    """Value and gradient of the mean over texts of the mean over places of the divergence."""
    leaf = STUDENT.clone().requires_grad_()
    table = STUDENT if author == "student" else TEACHER
    total = torch.zeros((), dtype=torch.float64)
    for tokens in TEXTS:
        each_T = divergence(rows_of(leaf, tokens), rows_of(TEACHER, tokens))
        total = total + logps(table, tokens).exp() * each_T[skip:].mean()
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.item(), gradient


def expected(author: str, objective: Objective, skip: int = 0) -> tuple[float, Tensor]:
    """The same of what a server would be sent, over all texts and, where it draws, all draws."""
    leaf = STUDENT.clone().requires_grad_()
    table = STUDENT if author == "student" else TEACHER
    student, teacher = samplers()
    drawing = {"student": student, "teacher": teacher}.get(DRAWS.get(objective, ""))
    total = torch.zeros((), dtype=torch.float64)
    for tokens in TEXTS:
        chance = logps(table, tokens).exp()
        for share in all_draws(drawing, tokens) if drawing else [1.0]:
            batch = objective(student, teacher, [text_of(author, tokens)], skip, 0)
            total = total + chance * share * (server_loss(batch, leaf, [PROMPT]) + batch.constant)
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.item(), gradient


@pytest.mark.parametrize(("author", "objective", "divergence"), CELLS, ids=IDS)
@pytest.mark.parametrize("skip", [0, 1])
def test_each_cell_has_the_mean_and_the_gradient_of_its_divergence(
    author: str, objective: Objective, divergence: Divergence, skip: int
) -> None:
    value, gradient = exact(author, divergence, skip)
    found, slope = expected(author, objective, skip)
    assert found == pytest.approx(value, abs=1e-5)
    assert torch.allclose(slope, gradient, atol=1e-5)
    assert gradient.abs().max() > 0.01


def test_the_four_cells_are_four_different_gradients() -> None:
    cells = [exact(author, d)[1] for author in ("teacher", "student") for d in (kl_q_p, kl_p_q)]
    for i, one in enumerate(cells):
        for other in cells[i + 1 :]:
            assert (one - other).abs().max() > 0.01


def bucketed(rows: Tensor, chosen: list[int]) -> Tensor:
    kept = rows[chosen].exp()
    return torch.cat([kept, 1 - kept.sum(0, keepdim=True)]).log()


@pytest.mark.parametrize("by", ["teacher", "student"])
def test_two_of_three_tokens_are_those_two_and_the_rest(by: str) -> None:
    """On one text, by the definition: each model's two likeliest tokens, and the third as rest."""
    student, teacher = samplers()
    objective = on_teachers_top if by == "teacher" else on_students_top
    tokens = (2, 1)
    for divergence in (kl_p_q, kl_q_p, jsd):
        batch = objective(
            student, teacher, [text_of("student", tokens)], 0, 0, divergence=divergence, k=2
        )
        p_T, q_T = rows_of(STUDENT, tokens), rows_of(TEACHER, tokens)
        chosen = [row.topk(2).indices.tolist() for row in (q_T if by == "teacher" else p_T)]
        each = [
            divergence(bucketed(p, ids), bucketed(q, ids)).item()
            for p, q, ids in zip(p_T, q_T, chosen, strict=True)
        ]
        found = server_loss(batch, STUDENT, [PROMPT]).item()
        assert found == pytest.approx(sum(each) / 2, abs=1e-5)


def test_soft_targets_cut_the_teacher_and_not_the_student() -> None:
    student, teacher = samplers()
    tokens = (0, 2)
    batch = soft_kl_q_p(student, teacher, [text_of("student", tokens)], 0, 0, k=2)
    each = []
    for p, q in zip(rows_of(STUDENT, tokens), rows_of(TEACHER, tokens), strict=True):
        ids = q.topk(2).indices
        cut = q[ids].exp() / q[ids].exp().sum()
        each.append((cut * (cut.log() - p[ids])).sum().item())
    found = server_loss(batch, STUDENT, [PROMPT]).item() + batch.constant
    assert found == pytest.approx(sum(each) / 2, abs=1e-5)


@pytest.mark.parametrize("objective", [drawn_kl_p_q, drawn_kl_q_p])
def test_two_draws_are_the_mean_of_one_and_one(objective: Any) -> None:
    student, teacher = samplers()
    texts = [text_of("teacher", (1, 0))]
    values = []
    for draws in ([[0], [2]], [[1], [1]], [[0, 1], [2, 1]]):
        student.draws = teacher.draws = draws
        batch = objective(student, teacher, texts, 0, 0, n=len(draws[0]))
        values.append(server_loss(batch, TEACHER, [PROMPT]).item() + batch.constant)
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=1e-6)


@pytest.mark.parametrize(("author", "objective", "divergence"), CELLS, ids=IDS)
def test_only_completions_carry_loss_and_long_ones_count_for_more(
    author: str, objective: Objective, divergence: Divergence
) -> None:
    """Texts of one and two tokens: the mean over all of them, nothing on a prompt or skipped."""
    student, teacher = samplers()
    student.draws = teacher.draws = [[1], [0]]
    texts = [text_of(author, (1,)), text_of(author, (2, 0))]

    def value(batch_texts: list[Text], skip: int) -> float:
        batch = objective(student, teacher, batch_texts, skip, 0)
        for datum in batch.data:
            for name in datum.loss_fn_inputs.keys() & {"weights", "advantages"}:
                carried = datum.loss_fn_inputs[name].to_torch()
                assert (carried[: len(PROMPT) - 1 + skip] == 0).all()
        prompts = [PROMPT] * len(batch_texts)
        return server_loss(batch, STUDENT, prompts).item() + batch.constant

    short, long = value(texts[:1], 0), value(texts[1:], 0)
    assert value(texts, 0) == pytest.approx((short + 2 * long) / 3, abs=1e-6)
    assert value(texts, 1) == pytest.approx(value(texts[1:], 1), abs=1e-6)
    assert value(texts, 1) != pytest.approx(value(texts, 0), abs=1e-3)


def test_kept_targets_are_not_asked_for_again() -> None:
    student, teacher = samplers()
    text = text_of("teacher", (1, 2))
    rows = rows_of(TEACHER, (1, 2)).topk(V)
    kept = Text(
        PROMPT, TEACHER_PROMPT, [1, 2], text.logprobs, "teacher",
        top=Candidates(rows.indices, rows.values.float()),
    )  # fmt: skip
    for objective in (soft_kl_q_p, on_teachers_top):
        for k in (2, 3):
            fresh = objective(student, teacher, [text], 0, 0, k=k)
            asked = teacher.asked
            again = objective(student, teacher, [kept], 0, 0, k=k)
            assert teacher.asked == asked
            assert fresh.teacher_tokens == len(TEACHER_PROMPT) + 2
            assert again.teacher_tokens == 0
            assert server_loss(again, STUDENT, [PROMPT]).item() == pytest.approx(
                server_loss(fresh, STUDENT, [PROMPT]).item(), abs=1e-6
            )
    few = Text(PROMPT, TEACHER_PROMPT, [1], [-1.0], "teacher",
               top=Candidates(torch.tensor([[0]]), torch.tensor([[-1.0]])))  # fmt: skip
    with pytest.raises(ValueError, match="keeps the teacher's 1 likeliest tokens, and k is 20"):
        soft_kl_q_p(student, teacher, [few], 0, 0)


def test_what_each_objective_costs() -> None:
    """Positions of forward passes: the teacher's, and the student's besides training."""
    texts = [text_of("student", (1, 2)), text_of("student", (0,))]
    own, teachers, trained = (2 + 2) + (2 + 1), (3 + 2) + (3 + 1), 3 + 2
    student, teacher = samplers()
    costs = {}
    for objective in (sampled_kl_p_q, partial(soft_kl_q_p, k=2), partial(on_teachers_top, k=2),
                      partial(on_students_top, k=2)):  # fmt: skip
        batch = objective(student, teacher, texts, 0, 0)
        costs[name_of(objective)] = (batch.teacher_tokens, batch.student_tokens)
    assert costs == {
        "sampled_kl_p_q": (teachers, 0),
        "soft_kl_q_p": (teachers, 0),
        "on_teachers_top": (teachers, trained),
        "on_students_top": (teachers, own + trained),
    }


def test_the_wrong_author_is_refused() -> None:
    student, teacher = samplers()
    own, others = text_of("student", (1, 2)), text_of("teacher", (1, 2))
    with pytest.raises(ValueError, match=r"1 of 2 texts are not written by the student.*drawn_kl"):
        sampled_kl_p_q(student, teacher, [own, others], 0, 0)
    with pytest.raises(ValueError, match=r"1 of 1 texts are not written by the teacher.*drawn_kl"):
        sampled_kl_q_p(student, teacher, [own], 0, 0)

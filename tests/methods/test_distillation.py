"""Distillation against the engine: who writes, what is counted, and that the teacher is reached."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
import torch
from transformers import PreTrainedTokenizerFast

from posttrain.connect import shipped_models
from posttrain.datums import chat_prompt, plain_prompt
from posttrain.divergences import kl_p_q, kl_q_p
from posttrain.methods import sft
from posttrain.methods.distillation import (
    Config,
    Questions,
    Texts,
    collect,
    given,
    mixed,
    students_texts,
    teachers_texts,
    train,
    until_spent,
)
from posttrain.methods.objectives import (
    Batch,
    Objective,
    Text,
    drawn_kl_p_q,
    on_students_top,
    sampled_kl_p_q,
    sampled_kl_q_p,
    soft_kl_q_p,
)
from posttrain.renderers import PLAIN_STOP
from posttrain.scoring import logprobs_of, token_logprobs, top_tokens
from posttrain.tasks import math
from posttrain.tasks.problem import Demonstration

PROBLEMS = math.problems("train", 8, steps=(1, 1))
QUESTIONS = Questions(PROBLEMS)
SMALL = Config(prompts=2, group_size=2, max_tokens=12, steps=2)
V = json.loads((shipped_models()["posttrain/base"] / "config.json").read_text())["vocab_size"]


@pytest.fixture(scope="module")
def teacher(base_service: tinker.ServiceClient) -> tinker.SamplingClient:
    """A teacher with something to teach: the chat format, which the base has never seen."""
    policy = base_service.create_lora_training_client("posttrain/base", rank=8, seed=1).result()
    shown = [Demonstration(p.question, p.solution) for p in PROBLEMS]
    list(sft.train(policy, shown, sft.Config(steps=30, batch_size=8)))
    return policy.save_weights_and_get_sampling_client().result()


@pytest.fixture(scope="module")
def held_out(teacher: tinker.SamplingClient) -> list[Text]:
    cfg = replace(SMALL, seed=9, max_tokens=24)
    return collect(teacher, QUESTIONS, cfg, keep=lambda item, text: True).texts


def exact_divergences(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient, texts: list[Text]
) -> tuple[float, float]:
    """KL(q || p) and KL(p || q) over the whole vocabulary, nats per token of the texts."""
    student = policy.save_weights_and_get_sampling_client().result()
    rows = top_tokens(teacher, [text.for_teacher for text in texts], V)
    own = logprobs_of(student, [t.for_student for t in texts], [row.tokens for row in rows])
    p = torch.cat(own).double().log_softmax(-1)
    q = torch.cat([row.logprobs for row in rows]).double().log_softmax(-1)
    return kl_q_p(p, q).mean().item(), kl_p_q(p, q).mean().item()


@pytest.mark.parametrize(
    ("texts", "objective", "named"),
    [
        (teachers_texts, sampled_kl_q_p, 0),
        (teachers_texts, partial(drawn_kl_p_q, n=8), 1),
        (students_texts, soft_kl_q_p, 0),
        (students_texts, on_students_top, 1),
    ],
    ids=["teacher KL(q||p)", "teacher KL(p||q)", "student KL(q||p)", "student KL(p||q)"],
)
def test_in_every_cell_the_student_comes_nearer(
    policy: tinker.TrainingClient,
    teacher: tinker.SamplingClient,
    held_out: list[Text],
    texts: Texts,
    objective: Objective,
    named: int,
) -> None:
    """The exact divergence that the objective names, on texts of the teacher that no step has
    trained on, before and after."""
    before = exact_divergences(policy, teacher, held_out)
    cfg = Config(prompts=4, group_size=2, max_tokens=24, steps=10, learning_rate=3e-3)
    found = list(train(policy, teacher, QUESTIONS, cfg, texts=texts, objective=objective))
    after = exact_divergences(policy, teacher, held_out)
    assert before[named] > 1
    assert after[named] < 0.7 * before[named]
    assert sum(m["divergence"] for m in found[-3:]) < sum(m["divergence"] for m in found[:3])


def test_the_student_that_writes_is_the_policy_as_it_is_now(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient, held_out: list[Text]
) -> None:
    seen = []

    def watched(student: Any, teacher: Any, texts: Any, skip: int, seed: int) -> Batch:
        seen.append(token_logprobs(student, [held_out[0].for_student])[0].sum().item())
        return soft_kl_q_p(student, teacher, texts, skip, seed)

    list(train(policy, teacher, QUESTIONS, replace(SMALL, learning_rate=1e-2), objective=watched))
    now = policy.save_weights_and_get_sampling_client().result()
    seen.append(token_logprobs(now, [held_out[0].for_student])[0].sum().item())
    assert len(seen) == 3  # before each of the two steps, and after them
    assert abs(seen[1] - seen[0]) > 0.1
    assert abs(seen[2] - seen[1]) > 0.1


def test_its_own_teacher_has_nothing_to_say(policy: tinker.TrainingClient) -> None:
    """Divergence 0 by every objective, and by the samples only where p and q are the same."""
    own = policy.save_weights_and_get_sampling_client().result()
    for texts, objective in (
        (students_texts, sampled_kl_p_q),
        (teachers_texts, sampled_kl_q_p),
        (teachers_texts, partial(drawn_kl_p_q, n=3)),
        (students_texts, partial(on_students_top, k=5)),
    ):
        cfg = replace(SMALL, steps=1, learning_rate=0.0)
        (metrics,) = train(policy, own, QUESTIONS, cfg, texts=texts, objective=objective)
        assert metrics["divergence"] == pytest.approx(0, abs=1e-4)


def test_the_estimates_agree_with_the_whole_vocabulary(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient, held_out: list[Text]
) -> None:
    """On the same given texts: soft and top targets exactly, draws within their noise."""
    forward, backward = exact_divergences(policy, teacher, held_out)
    cfg = Config(prompts=8, group_size=2, steps=1, learning_rate=0.0)

    def found(objective: Objective) -> float:
        (metrics,) = train(
            policy, teacher, QUESTIONS, cfg, texts=given(held_out), objective=objective
        )
        return metrics["divergence"]

    assert len(held_out) == cfg.prompts * cfg.group_size
    assert found(partial(soft_kl_q_p, k=V)) == pytest.approx(forward, abs=2e-3)
    assert found(partial(on_students_top, k=V)) == pytest.approx(backward, abs=2e-3)
    assert found(partial(on_students_top, k=30)) == pytest.approx(backward, rel=0.1)
    assert found(partial(drawn_kl_p_q, n=64)) == pytest.approx(backward, rel=0.1)
    assert found(sampled_kl_q_p) == pytest.approx(forward, rel=0.5)


def test_who_wrote_is_counted(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient
) -> None:
    (own,) = train(policy, teacher, QUESTIONS, replace(SMALL, steps=1))
    assert own["by_student"] == 1
    prompts = own["tokens"] + 4 - own["sampled_tokens"]  # inputs lack the last of each text
    assert own["teacher_tokens"] == own["scored_tokens"] == prompts + own["sampled_tokens"]
    (others,) = train(
        policy, teacher, QUESTIONS, replace(SMALL, steps=1),
        texts=teachers_texts, objective=sampled_kl_q_p,
    )  # fmt: skip
    assert others["by_student"] == 0
    assert others["teacher_tokens"] == others["sampled_tokens"] == 4 * others["length"]
    assert others["scored_tokens"] == 0


def test_mixing_divides_the_questions(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient
) -> None:
    student = policy.save_weights_and_get_sampling_client().result()
    cfg = Config(prompts=8, group_size=1, max_tokens=2)
    shares = []
    for share in (0.0, 0.5, 1.0):
        written = mixed(share)(student, teacher, QUESTIONS, cfg, 3)
        assert len({tuple(text.prompt) for text in written}) == 8
        shares.append(sum(text.author == "student" for text in written) / 8)
    assert shares[0] == 0
    assert 0 < shares[1] < 1
    assert shares[2] == 1
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        mixed(1.5)


def test_a_collected_data_set_is_paid_once(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient
) -> None:
    kept = collect(teacher, QUESTIONS, replace(SMALL, max_tokens=32), top=20)
    assert all(text.finished for text in kept.texts)
    assert kept.sampled_tokens >= sum(len(text.tokens) for text in kept.texts)
    assert kept.scored_tokens == sum(len(t.prompt) + len(t.tokens) for t in kept.texts)
    for metrics in train(
        policy, teacher, QUESTIONS, SMALL, texts=given(kept.texts), objective=soft_kl_q_p
    ):
        assert metrics["teacher_tokens"] == metrics["sampled_tokens"] == 0
        assert metrics["divergence"] > 0
    right = collect(
        teacher, QUESTIONS, replace(SMALL, max_tokens=32),
        keep=lambda problem, text: problem.grade(text.text).correct,
    )  # fmt: skip
    by_prompt = {tuple(QUESTIONS.ask(teacher.get_tokenizer(), i)[0]): p
                 for i, p in enumerate(PROBLEMS)}  # fmt: skip
    assert all(by_prompt[tuple(t.prompt)].grade(t.text).correct for t in right.texts)
    with pytest.raises(ValueError, match="not one of the teacher's 16 texts was kept"):
        collect(teacher, QUESTIONS, SMALL, keep=lambda item, text: False)


def test_a_budget_ends_asking(teacher: tinker.SamplingClient) -> None:
    """Four questions are asked two at a time; texts of 12 tokens are cut off there."""
    every = partial(collect, teacher, Questions(PROBLEMS[:4]), SMALL, keep=lambda i, t: True)
    first, whole = every(budget=1), every(budget=10**6)
    assert (first.written, whole.written) == (4, 8)
    assert first.sampled_tokens == sum(len(text.tokens) for text in first.texts)
    assert every(budget=first.sampled_tokens).written == 4
    assert every(budget=first.sampled_tokens + 1).sampled_tokens == whole.sampled_tokens


def test_training_ends_with_the_step_that_spends_the_budget() -> None:
    steps = [{"teacher_tokens": 10.0, "step": float(step)} for step in range(5)]
    for budget, spent, taken in ((25, 0, 3), (30, 0, 3), (30, 20, 1), (30, 30, 0), (99, 0, 5)):
        assert list(until_spent(iter(steps), budget, spent)) == steps[:taken]


def test_each_model_reads_its_own_prompt_and_the_layout_is_shared(
    policy: tinker.TrainingClient,
) -> None:
    """In the plain form a fresh adapter, which is the base, ends its answer with the line."""
    base = policy.save_weights_and_get_sampling_client().result()
    tokenizer = base.get_tokenizer()
    told = Questions(PROBLEMS, layout=plain_prompt, shown=lambda item: f"Hint. {item.question}",
                     stop=PLAIN_STOP)  # fmt: skip
    own, others = told.ask(tokenizer, 2)
    assert own == plain_prompt(tokenizer, PROBLEMS[2].question)
    assert others == plain_prompt(tokenizer, f"Hint. {PROBLEMS[2].question}")
    texts = collect(base, told, replace(SMALL, max_tokens=60), keep=lambda i, t: True).texts
    ended = [text for text in texts if text.finished]
    assert ended
    stops = [tokenizer.encode(stop, add_special_tokens=False)[-1] for stop in PLAIN_STOP]
    assert all(text.tokens[-1] in stops for text in ended)


def test_texts_too_short_to_count_train_nothing(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient
) -> None:
    (metrics,) = train(policy, teacher, QUESTIONS, replace(SMALL, steps=1, max_tokens=3, skip=3))
    assert "divergence" not in metrics
    assert metrics["tokens"] == 0
    assert metrics["sampled_tokens"] == 12


def test_resuming_takes_the_texts_that_were_left(
    policy: tinker.TrainingClient, teacher: tinker.SamplingClient
) -> None:
    cfg = replace(SMALL, learning_rate=0.0)
    whole = [m["divergence"] for m in train(policy, teacher, QUESTIONS, cfg)]
    rest = [m["divergence"] for m in train(policy, teacher, QUESTIONS, cfg, start=1)]
    assert rest == pytest.approx(whole[1:], abs=1e-5)


def client_with(tokenizer: Any) -> Any:
    return SimpleNamespace(get_tokenizer=lambda: tokenizer)


def test_a_teacher_who_reads_other_tokens_is_refused_before_anything_is_asked() -> None:
    def tokenizer() -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast.from_pretrained(shipped_models()["posttrain/base"])

    other, layout = tokenizer(), tokenizer()
    other.add_tokens(["<|new|>"])
    layout.chat_template = "{{ messages[0]['content'] }}"
    for teacher, message in (
        (other, "different tokenizers"),
        (layout, "lays a prompt out in another way"),
    ):
        with pytest.raises(ValueError, match=message):
            next(train(client_with(tokenizer()), client_with(teacher), QUESTIONS, SMALL))
    plain = Questions(PROBLEMS, layout=plain_prompt)
    assert plain.ask(tokenizer(), 0) == plain.ask(layout, 0)
    assert chat_prompt(tokenizer(), "x") != chat_prompt(layout, "x")
    with pytest.raises(ValueError, match="no question was given"):
        next(train(client_with(tokenizer()), client_with(tokenizer()), Questions([]), SMALL))

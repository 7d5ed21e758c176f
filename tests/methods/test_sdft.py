"""SDFT: who is shown what, the gate, teachers that stay or follow, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import tinker

from posttrain.datums import chat_prompt, plain_prompt
from posttrain.divergences import jsd
from posttrain.methods import distillation, sft
from posttrain.methods.distillation import Questions, students_texts
from posttrain.methods.objectives import on_teachers_top, sampled_kl_p_q, soft_kl_q_p
from posttrain.methods.sdft import (
    Config,
    as_published,
    demonstration_gain,
    others_demonstrations,
    own_demonstration,
    own_right_answers,
    rewritten,
    to_rewrite,
    train,
)
from posttrain.renderers import PLAIN_STOP
from posttrain.tasks import math
from posttrain.tasks.problem import Demonstration

PROBLEMS = math.problems("train", 8, steps=(1, 1))
SMALL = Config(prompts=2, group_size=2, max_tokens=12, steps=4)
# The base has met examples in this form, and not in the chat format.
SHOWN = Questions(PROBLEMS, layout=plain_prompt, shown=own_demonstration, stop=PLAIN_STOP)


@pytest.fixture(scope="module")
def base(base_service: tinker.ServiceClient) -> tinker.SamplingClient:
    return base_service.create_sampling_client(base_model="posttrain/base").result()


def test_the_teacher_reads_the_example_and_the_student_does_not(
    base: tinker.SamplingClient,
) -> None:
    tokenizer, problem = base.get_tokenizer(), PROBLEMS[3]
    own, teachers = SHOWN.ask(tokenizer, 3)
    assert tokenizer.decode(own) == f"Question: {problem.question}\nAnswer:"
    assert tokenizer.decode(teachers) == (
        f"Question: {problem.question}\nAnswer: {problem.solution}\n\n"
        f"Question: {problem.question}\nAnswer:"
    )
    chat = Questions(PROBLEMS, shown=as_published)
    own, teachers = chat.ask(tokenizer, 3)
    assert own == chat_prompt(tokenizer, problem.question)
    begins = f"<|user|> {problem.question}\n\nThis is an ex"
    assert str(tokenizer.decode(teachers)).startswith(begins)
    assert problem.solution in to_rewrite(problem)


def test_other_items_are_shown_without_the_answer() -> None:
    shown = others_demonstrations(PROBLEMS, n=3, seed=1)
    for problem in PROBLEMS:
        text = shown(problem)
        assert text == shown(problem)
        assert text.endswith(f"\n\nQuestion: {problem.question}")
        examples = [other for other in PROBLEMS if f"Answer: {other.solution}" in text]
        assert len(examples) == 3
        assert problem not in examples
    assert len({others_demonstrations(PROBLEMS, n=1, seed=s)(PROBLEMS[0]) for s in range(9)}) > 1
    with pytest.raises(ValueError, match="8 examples wanted, and the pool has 7 other items"):
        others_demonstrations(PROBLEMS, n=8)(PROBLEMS[0])


def test_it_learns_what_the_demonstration_shows(
    policy: tinker.TrainingClient, base: tinker.SamplingClient
) -> None:
    """The divergence from the teacher falls to less than half, and so does the share of errors
    that its demonstrations would have avoided; no text but the model's own was trained on."""
    before = demonstration_gain(base, SHOWN, k=8, max_tokens=40)
    assert before.gain.low > 0.05
    assert before.gain.value == pytest.approx(
        before.shown.pass_at_1.value - before.plain.pass_at_1.value
    )
    cfg = Config(prompts=8, group_size=4, max_tokens=40, steps=12, learning_rate=3e-3)
    metrics = list(train(policy, base, SHOWN, cfg))
    assert metrics[-1]["divergence"] < 0.5 * metrics[0]["divergence"]
    assert all(m["by_student"] == 1 for m in metrics)
    after = demonstration_gain(
        policy.save_weights_and_get_sampling_client().result(), SHOWN, k=8, max_tokens=40
    )
    assert after.plain.pass_at_1.value > before.plain.pass_at_1.value + 0.5 * before.gain.value


@pytest.mark.parametrize(
    "objective", [sampled_kl_p_q, partial(on_teachers_top, divergence=jsd, k=10)]
)
def test_other_divergences_are_other_functions(
    policy: tinker.TrainingClient, base: tinker.SamplingClient, objective: object
) -> None:
    (metrics,) = train(policy, base, SHOWN, replace(SMALL, steps=1), objective=objective)  # type: ignore[arg-type]
    assert metrics["divergence"] != pytest.approx(0, abs=1e-3)


def test_a_teacher_that_stays_is_distillation(
    policy: tinker.TrainingClient, base: tinker.SamplingClient
) -> None:
    cfg = replace(SMALL, learning_rate=0.0)
    plain = distillation.train(
        policy, base, SHOWN, cfg, texts=students_texts, objective=soft_kl_q_p, start=1
    )
    expected = [m["divergence"] for m in plain]
    found = [m["divergence"] for m in train(policy, base, SHOWN, cfg, start=1)]
    assert len(found) == 3
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_refreshed_teacher_is_the_student_of_that_step(
    base_service: tinker.ServiceClient, base: tinker.SamplingClient
) -> None:
    """Against two runs by hand, the second with the first's student as the teacher; and a run
    that resumes at the refresh is the same."""
    cfg = replace(SMALL, refresh=2, learning_rate=3e-3)

    def fresh() -> tinker.TrainingClient:
        return base_service.create_lora_training_client("posttrain/base", rank=4, seed=5).result()

    refreshed = [m["divergence"] for m in train(fresh(), None, SHOWN, cfg)]
    static = [m["divergence"] for m in train(fresh(), base, SHOWN, replace(cfg, refresh=0))]
    by_hand = fresh()
    first = list(train(by_hand, base, SHOWN, replace(cfg, refresh=0, steps=2)))
    now = by_hand.save_weights_and_get_sampling_client().result()
    second = list(train(by_hand, now, SHOWN, replace(cfg, refresh=0), start=2))
    assert refreshed == pytest.approx([m["divergence"] for m in first + second], abs=1e-4)
    assert refreshed[:2] == pytest.approx(static[:2], abs=1e-4)
    assert refreshed[2] != pytest.approx(static[2], abs=1e-3)
    resumed = fresh()
    list(train(resumed, None, SHOWN, replace(cfg, steps=2)))
    rest = [m["divergence"] for m in train(resumed, None, SHOWN, cfg, start=2)]
    assert rest == pytest.approx(refreshed[2:], abs=1e-4)
    with pytest.raises(ValueError, match="step 3 is between two refreshes"):
        next(train(resumed, None, SHOWN, cfg, start=3))
    for teacher, refresh in ((base, 2), (base, -1), (None, 0)):
        with pytest.raises(ValueError, match="either a teacher that stays and refresh=0, or none"):
            next(train(resumed, teacher, SHOWN, replace(cfg, refresh=refresh)))


def test_a_teacher_that_is_shown_nothing_is_refused(
    policy: tinker.TrainingClient, base: tinker.SamplingClient
) -> None:
    with pytest.raises(ValueError, match="shown no more than the student"):
        next(train(policy, base, Questions(PROBLEMS), SMALL))


def test_the_first_tokens_can_be_left_out(
    policy: tinker.TrainingClient, base: tinker.SamplingClient
) -> None:
    """The same texts: with the first three tokens the mean is over all, without over the rest."""
    cfg = replace(SMALL, steps=1, learning_rate=0.0)
    (whole,) = train(policy, base, SHOWN, cfg)
    (rest,) = train(policy, base, SHOWN, replace(cfg, skip=3))
    (three,) = train(policy, base, SHOWN, replace(cfg, max_tokens=3))
    assert whole["length"] == rest["length"]
    n = whole["length"]
    mean = (3 * three["divergence"] + (n - 3) * rest["divergence"]) / n
    assert whole["divergence"] == pytest.approx(mean, rel=1e-3)


def test_rewrites_are_right_or_gold_and_train_like_demonstrations(
    policy: tinker.TrainingClient, base: tinker.SamplingClient
) -> None:
    cfg = distillation.Config(group_size=2, max_tokens=40)
    told = rewritten(base, SHOWN, cfg)
    assert [d.question for d in told.demonstrations] == [p.question for p in PROBLEMS]
    for problem, shown in zip(PROBLEMS, told.demonstrations, strict=True):
        assert problem.grade(shown.answer).correct
    assert 0 < told.own <= 1
    own = own_right_answers(base, SHOWN, cfg)
    by_question = {p.question: p for p in PROBLEMS}
    assert all(by_question[d.question].grade(d.answer).correct for d in own.demonstrations)
    assert len(set(own.demonstrations)) == len(own.demonstrations)
    assert own.sampled_tokens == told.sampled_tokens
    first = [d for d in own.demonstrations if d in told.demonstrations]
    assert len({d.question for d in own.demonstrations}) == round(told.own * len(PROBLEMS))
    assert len(first) == round(told.own * len(PROBLEMS))
    next(sft.train(policy, told.demonstrations, sft.Config(steps=1, batch_size=8)))
    nothing = replace(SHOWN, items=[_Impossible()])
    assert rewritten(base, nothing, cfg).demonstrations == [Demonstration("Compute 1+1.", "2")]
    with pytest.raises(ValueError, match="no sampled answer was right"):
        own_right_answers(base, nothing, cfg)
    with pytest.raises(ValueError, match="no question was given"):
        rewritten(base, replace(SHOWN, items=[]), cfg)


class _Impossible:
    key, question, solution = "impossible", "Compute 1+1.", "2"

    def grade(self, completion: str) -> math.Grade:
        return math.Grade(correct=False, parsed=True)

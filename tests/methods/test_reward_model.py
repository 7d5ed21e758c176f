"""The reward model: losses against plain arithmetic, and the loop against the engine."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch

from posttrain.methods.reward_model import (
    BETTER,
    GOOD,
    Config,
    Form,
    Loss,
    batch_loss,
    better_prompt,
    bradley_terry,
    bradley_terry_centred,
    calibration_error,
    fidelity,
    good_prompt,
    pairwise_judge,
    reward_pairs,
    train,
)
from posttrain.tasks.problem import Preference
from posttrain.verdicts import verdicts

SHOWN = [
    Preference(question, f"{word} sun", f"{word} mud")
    for question in ("One?", "Two?")
    for word in ("a", "the", "no")
]
TURNED = [Preference(p.question, p.rejected, p.chosen) for p in SHOWN]
WIN, LOSE = [0.3, -1.2, 2.0, 0.0], [0.1, 0.4, -3.0, 0.0]


def plain(win: list[float], lose: list[float], weight: float) -> float:
    """The formula, by the definition of the sigmoid."""
    values = [
        -math.log(1 / (1 + math.exp(v - w))) + weight * (w + v) ** 2
        for w, v in zip(win, lose, strict=True)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize(("loss", "weight"), [(bradley_terry, 0.0), (bradley_terry_centred, 0.01)])
def test_losses_and_gradients_are_those_of_the_formula(loss: Loss, weight: float) -> None:
    win = torch.tensor(WIN, dtype=torch.float64, requires_grad=True)
    lose = torch.tensor(LOSE, dtype=torch.float64, requires_grad=True)
    value = loss(win, lose)
    assert value.item() == pytest.approx(plain(WIN, LOSE, weight), rel=1e-12)
    value.backward()
    for place, tensor in ((0, win), (1, lose)):
        assert tensor.grad is not None
        for i in range(4):
            moved = [[list(WIN), list(LOSE)] for _ in range(2)]
            moved[0][place][i] += 1e-5
            moved[1][place][i] -= 1e-5
            (up, down) = (plain(w, lo, weight) for w, lo in moved)
            slope = (up - down) / 2e-5
            assert tensor.grad[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_equal_scores_cost_log_2() -> None:
    scores = torch.tensor([-3.0, 0.0, 5.0], dtype=torch.float64)
    assert bradley_terry(scores, scores).item() == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize(("form", "scale"), [(GOOD, 1.0), (BETTER, 0.5)])
def test_only_the_two_answers_get_gradient(form: Form, scale: float) -> None:
    """log p of (first, second) at the last of T rows; -dL/dh = sigmoid(-h) / pairs."""
    rows = [[-1.0, -2.0], [-0.5, -3.0], [-1.0, -1.0], [-2.0, -0.5]]
    logprobs_D = [torch.tensor([[0.0, 0.0], row], requires_grad=True) for row in rows]
    value, metrics = batch_loss(bradley_terry, form.scale, [], logprobs_D)
    value.backward()
    gaps = [a - b for a, b in rows]
    h = [scale * (gaps[0] - gaps[1]), scale * (gaps[2] - gaps[3])]
    assert value.item() == pytest.approx(plain([h[0], h[1]], [0.0, 0.0], 0.0))
    assert metrics["accuracy"] == sum(x > 0 for x in h) / 2
    assert metrics["margin"] == pytest.approx(sum(h) / 2)
    assert metrics["level"] == pytest.approx(sum(gaps) / 4)
    for i, logprobs in enumerate(logprobs_D):
        step = scale / (1 + math.exp(h[i // 2])) / 2 * (-1 if i % 2 == 0 else 1)
        assert logprobs.grad is not None
        expected = torch.tensor([[0.0, 0.0], [step, -step]])
        torch.testing.assert_close(logprobs.grad, expected)


def test_a_tie_counts_half() -> None:
    rows = [torch.tensor([[-1.0, -1.0]])] * 2
    assert batch_loss(bradley_terry, 1.0, [], rows)[1]["accuracy"] == 0.5


def test_calibration_error_by_hand() -> None:
    """Two bins: |2/3 - mean confidence| of three pairs, |1 - confidence| of one."""
    h = np.array([0.2, -0.2, 0.3, -3.0])
    right = np.array([1.0, 0.0, 1.0, 0.0])
    low = [1 / (1 + math.exp(-abs(x))) for x in (0.2, 0.2, 0.3)]
    high = 1 / (1 + math.exp(-3.0))
    expected = 3 / 4 * abs(2 / 3 - sum(low) / 3) + 1 / 4 * high
    assert calibration_error(h, right, bins=2) == pytest.approx(expected)


def test_calibration_of_labels_that_follow_the_model_and_of_overconfidence() -> None:
    """Labels drawn from sigmoid(h), and a model that doubles its h: E|sigmoid(2h) - sigmoid(h)|."""
    rng = np.random.default_rng(0)
    true = np.abs(rng.standard_normal(400_000))
    p = 1 / (1 + np.exp(-true))
    right = (rng.random(true.size) < p).astype(float)
    assert calibration_error(true, right) < 0.004
    doubled = 1 / (1 + np.exp(-2 * true))
    assert calibration_error(2 * true, right) == pytest.approx((doubled - p).mean(), abs=0.004)


# The loop, on a tiny random model behind a real engine.


@pytest.fixture(scope="module")
def untrained(service: tinker.ServiceClient, tiny_model_dir: Path) -> tinker.SamplingClient:
    """By its directory, under which the tokenizer is found without network."""
    return service.create_sampling_client(base_model=str(tiny_model_dir)).result()


@pytest.fixture
def model(service: tinker.ServiceClient, tiny_model_dir: Path) -> tinker.TrainingClient:
    return service.create_lora_training_client(str(tiny_model_dir), rank=4, seed=0).result()


@pytest.mark.parametrize("form", [GOOD, BETTER])
def test_the_first_step_and_held_out_numbers_are_those_of_the_verdicts(
    model: tinker.TrainingClient, untrained: tinker.SamplingClient, form: Form
) -> None:
    """h of every pair from the verdicts on texts that are spelled out here."""
    if form is GOOD:
        texts = [good_prompt(p.question, a) for p in SHOWN for a in (p.chosen, p.rejected)]
    else:
        orders = [(p.question, a, b) for p in SHOWN for a, b in ((p.chosen, p.rejected),) * 1]
        texts = [t for q, a, b in orders for t in (better_prompt(q, a, b), better_prompt(q, b, a))]
    found, scored = verdicts(untrained, texts, form.answers)
    gaps = [v.gap for v in found]
    h = [form.scale * (a - b) for a, b in zip(gaps[0::2], gaps[1::2], strict=True)]
    loss = plain(h, [0.0] * 6, 0.0)
    pairs = reward_pairs(model.get_tokenizer(), SHOWN, form, max_tokens=100)
    (first,) = islice(train(model, pairs, Config(batch_size=6, steps=3), form=form), 1)
    assert first["loss"] == pytest.approx(loss, abs=1e-4)
    assert first["margin"] == pytest.approx(sum(h) / 6, abs=1e-4)
    assert first["level"] == pytest.approx(sum(gaps) / 12, abs=1e-4)
    assert first["accuracy"] == sum(x > 0 for x in h) / 6
    assert first["tokens"] == first["scored_tokens"] == scored - 12  # scoring appends an answer
    held_out = fidelity(untrained, SHOWN, form)
    assert held_out.pairs == 6
    assert held_out.loss == pytest.approx(loss, abs=1e-6)
    assert held_out.accuracy.value == pytest.approx(sum(x > 0 for x in h) / 6)
    assert held_out.level == pytest.approx(sum(gaps) / 12)
    assert held_out.unreadable == sum(not v.readable for v in found)
    assert held_out.scored_tokens == scored


def test_questions_count_alike(untrained: tinker.SamplingClient) -> None:
    """Three pairs of one question and one of another: the mean of two means."""
    shown = [SHOWN[0], SHOWN[1], SHOWN[2], SHOWN[3]]
    right = [fidelity(untrained, [p]).accuracy.value for p in shown]
    found = fidelity(untrained, shown).accuracy.value
    assert found == pytest.approx((sum(right[:3]) / 3 + right[3]) / 2)


@pytest.mark.parametrize("form", [GOOD, BETTER])
def test_it_learns_and_knows_new_words_for_the_same_taste(
    model: tinker.TrainingClient, form: Form
) -> None:
    pairs = reward_pairs(model.get_tokenizer(), SHOWN, form, max_tokens=100)
    metrics = list(train(model, pairs, Config(1e-2, batch_size=6, steps=40), form=form))
    assert metrics[-1]["loss"] < 0.1
    assert metrics[-1]["accuracy"] == 1.0
    sampler = model.save_weights_and_get_sampling_client().result()
    new = [Preference(q, f"{w} sun", f"{w} mud") for q in ("Ten?", "Six?") for w in ("his", "my")]
    assert fidelity(sampler, new, form).accuracy.value == 1.0
    turned = fidelity(sampler, [Preference(p.question, p.rejected, p.chosen) for p in new], form)
    assert turned.accuracy.value == 0.0  # whichever comes first


def test_swapped_pairs_have_the_opposite_h(untrained: tinker.SamplingClient) -> None:
    """Of the pairwise form too: a liking for the first place is in both orders and cancels."""
    for form in (GOOD, BETTER):
        there, back = (fidelity(untrained, shown, form) for shown in (SHOWN, TURNED))
        assert there.accuracy.value == pytest.approx(1 - back.accuracy.value)
        assert there.level == pytest.approx(back.level, abs=1e-6)


def test_a_judge_sees_one_order_at_a_time(untrained: tinker.SamplingClient) -> None:
    class Ask:
        key, question, solution = "one", "One?", ""

    judge = pairwise_judge(untrained)
    orders = [("a sun", "a mud"), ("a mud", "a sun")]
    texts = [better_prompt("One?", *order) for order in orders]
    found, _ = verdicts(untrained, texts, ("first", "second"))
    assert [judge(Ask(), *order) for order in orders] == [
        pytest.approx(1 / (1 + math.exp(-v.gap))) for v in found
    ]


def test_an_interrupted_run_resumes_to_the_same_metrics(
    service: tinker.ServiceClient, model: tinker.TrainingClient, tiny_model_dir: Path
) -> None:
    cfg = Config(batch_size=4, steps=4, learning_rate=5e-3, seed=3)
    pairs = reward_pairs(model.get_tokenizer(), SHOWN, max_tokens=100)
    expected = list(train(model, pairs, cfg))
    before = service.create_lora_training_client(str(tiny_model_dir), rank=4, seed=0).result()
    got = list(islice(train(before, pairs, cfg), 2))
    path = before.save_state("reward-interrupted", overwrite=True).result().path
    after = service.create_training_client_from_state_with_optimizer(path).result()
    got += list(train(after, pairs, cfg, start=2))
    assert got == expected


def test_bad_pairs_are_named(untrained: tinker.SamplingClient) -> None:
    tokenizer = untrained.get_tokenizer()
    with pytest.raises(ValueError, match="no preferences were given"):
        reward_pairs(tokenizer, [], max_tokens=100)
    same = [*SHOWN[:1], Preference("Four?", "same", "same ")]
    with pytest.raises(ValueError, match=r"preference 1 \('Four\?'\): chosen and rejected are"):
        reward_pairs(tokenizer, same, max_tokens=100)
    tokens = len("user: Request: One? Text: a sun Is it good?") + 1 + len("assistant: ")
    with pytest.raises(ValueError, match=f"has {tokens} tokens, more than max_tokens={tokens - 1}"):
        reward_pairs(tokenizer, SHOWN, max_tokens=tokens - 1)
    assert len(reward_pairs(tokenizer, SHOWN[:1], max_tokens=tokens)) == 1
    with pytest.raises(ValueError, match="nothing to predict"):
        fidelity(untrained, [])

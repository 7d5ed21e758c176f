"""RLVR against the engine: identity at the start, gradient sign, masks, and that it learns."""

from itertools import islice
from typing import Any

import pytest
import tinker
import torch

from posttrain.advantages import seq_mean_token_mean
from posttrain.datums import chat_prompt, with_sequence_mask
from posttrain.methods import sft
from posttrain.methods.rlvr import (
    Config,
    each,
    rejection_sample,
    right_answer,
    rlvr_datums,
    sample_batch,
    train,
)
from posttrain.rollouts import Rollout, kl_from, sample_groups
from posttrain.tasks import math
from posttrain.tasks.problem import Demonstration, Grade

PROBLEMS = math.problems("train", 8, steps=(1, 1))
SHOWN = [Demonstration(p.question, p.solution) for p in PROBLEMS]
SMALL = Config(prompts=4, group_size=4, max_tokens=24, steps=2)


class NoWork:
    """A task that a few steps can teach: answer without showing any work, as half do already."""

    key, question, solution = "no work", "Compute 31+24-12.", "The answer is 43."

    def grade(self, completion: str) -> Grade:
        return Grade(correct="=" not in completion, parsed=True)


def test_fresh_samples_have_ratio_one_and_no_distance(policy: tinker.TrainingClient) -> None:
    reference = policy.save_weights_and_get_sampling_client().result()
    metrics = next(train(policy, PROBLEMS, SMALL, reference=reference))
    assert metrics.get("mismatch", 0.0) < 1e-4
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-3)
    assert 0 <= metrics["correct"] <= 1
    assert metrics["length"] <= 24


def rollout(tokens: list[int], logprobs: list[float]) -> Rollout:
    return Rollout([1, 2], tokens, logprobs, "", finished=True)


def test_a_completion_as_good_as_its_group_is_left_out() -> None:
    group = [rollout([token], [-1.0]) for token in (5, 6, 7)]
    data = rlvr_datums([group], torch.tensor([[0.5, 0.0, -0.5]]))
    assert [d.loss_fn_inputs["target_tokens"].to_torch().tolist()[-1] for d in data] == [5, 7]


def test_datums_carry_the_advantage_on_answers_and_leave_flat_groups_out() -> None:
    groups = [[rollout([5], [-1.0]), rollout([6, 7], [-1.0, -2.0])], [rollout([8], [-1.0])] * 2]
    data = rlvr_datums(groups, torch.tensor([[0.5, -0.5], [0.0, 0.0]]))
    assert [d.model_input.to_ints() for d in data] == [[1, 2], [1, 2, 6]]
    advantages = [d.loss_fn_inputs["advantages"].to_torch().tolist() for d in data]
    assert advantages == [[0.0, 0.125], [0.0, -0.125, -0.125]]
    sampled = [d.loss_fn_inputs["logprobs"].to_torch().tolist() for d in data]
    assert sampled == [[0.0, -1.0], [0.0, -1.0, -2.0]]


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "gspo"])
def test_the_sign_of_the_advantage_is_the_direction(
    policy: tinker.TrainingClient, loss: Any
) -> None:
    """One update makes a rewarded answer likelier, one makes a punished answer less likely."""
    tokenizer = policy.get_tokenizer()
    prompt = chat_prompt(tokenizer, "Compute 3+4.")
    sampler = policy.save_weights_and_get_sampling_client().result()
    good, bad = tokenizer(" The answer is 7.")["input_ids"], tokenizer(" Then 9 more.")["input_ids"]

    def scores(client: tinker.SamplingClient) -> list[list[float]]:
        found = []
        for answer in (good, bad):
            whole = client.compute_logprobs(tinker.ModelInput.from_ints(prompt + answer)).result()
            found.append([x for x in whole[len(prompt) :] if x is not None])
        return found

    for which, advantage in enumerate((1.0, -1.0)):  # alone: together they share tokens
        before = scores(sampler)
        answer, logprobs = (good, bad)[which], before[which]
        data = rlvr_datums(
            [[Rollout(prompt, answer, logprobs, "", True)]], torch.tensor([[advantage]])
        )
        if loss == "gspo":
            data = [with_sequence_mask(datum) for datum in data]
        policy.forward_backward(data, loss).result()
        policy.optim_step(tinker.AdamParams(learning_rate=1e-5)).result()
        sampler = policy.save_weights_and_get_sampling_client().result()
        assert advantage * (sum(scores(sampler)[which]) - sum(before[which])) > 0


def test_it_learns_what_is_rewarded(policy: tinker.TrainingClient) -> None:
    cfg = Config(prompts=2, group_size=8, max_tokens=24, steps=25, learning_rate=1e-3)
    rewards = [m["reward"] for m in train(policy, [NoWork()], cfg)]
    assert sum(rewards[:2]) / 2 < 0.5
    assert sum(rewards[-8:]) / 8 > 0.9  # of 128 answers: processors round differently


def test_another_reward_is_another_function(policy: tinker.TrainingClient) -> None:
    def steps(problem: math.MathProblem, answer: str) -> float:
        return problem.grade_steps(answer)

    list(sft.train(policy, SHOWN, sft.Config(steps=10, batch_size=8)))
    cfg = Config(prompts=8, group_size=4, max_tokens=40, steps=1, learning_rate=0.0)
    longer = math.problems("train", 8, steps=(3, 4))
    (outcome,) = train(policy, longer, cfg)
    (process,) = train(policy, longer, cfg, reward=each(steps))
    assert outcome["reward"] == outcome["correct"]
    assert process["reward"] > outcome["reward"]  # some steps of a wrong answer are right
    assert process["correct"] == outcome["correct"]  # the same samples, another reward


class Ungraded:
    """An item without a right answer."""

    key, question, solution = "ungraded", "Compute 31+24-12.", ""


def test_a_reward_sees_the_whole_batch_and_adds_its_metrics(policy: tinker.TrainingClient) -> None:
    asked: list[tuple[int, list[int]]] = []

    def lengths(batch_P: Any, groups_P_G: Any) -> tuple[torch.Tensor, dict[str, float]]:
        asked.append((len(batch_P), [len(group) for group in groups_P_G]))
        return torch.tensor([[float(len(r.tokens)) for r in g] for g in groups_P_G]), {"judged": 7}

    cfg = Config(prompts=2, group_size=3, max_tokens=8, steps=1)
    (metrics,) = train(policy, [Ungraded()], cfg, reward=lengths)
    assert asked == [(2, [3, 3])]
    assert metrics["judged"] == 7
    assert metrics["reward"] == pytest.approx(metrics["length"])
    assert "correct" not in metrics
    assert "unparsed" not in metrics


def test_reuse_takes_two_updates_on_one_batch(policy: tinker.TrainingClient) -> None:
    cfg = Config(prompts=4, group_size=4, max_tokens=24, steps=2, reuse=2, learning_rate=1e-2)
    first, second = islice(train(policy, PROBLEMS, cfg, loss="ppo"), 2)
    assert first["reward"] == second["reward"]
    if "mismatch" in first:
        assert first["mismatch"] < 1e-4 < second["mismatch"]


def test_unreadable_answers_score_zero() -> None:
    assert right_answer(PROBLEMS[0], "forty-two") == 0.0
    assert right_answer(PROBLEMS[0], PROBLEMS[0].solution) == 1.0


def test_rejection_sampling_keeps_right_answers_once(policy: tinker.TrainingClient) -> None:
    list(sft.train(policy, SHOWN, sft.Config(steps=30, batch_size=8)))
    sampler = policy.save_weights_and_get_sampling_client().result()
    kept, tokens = rejection_sample(
        sampler, PROBLEMS, Config(prompts=8, group_size=4, steps=1, max_tokens=40)
    )
    by_question = {p.question: p for p in PROBLEMS}
    assert all(by_question[d.question].grade(d.answer).correct for d in kept)
    assert len({(d.question, d.answer) for d in kept}) == len(kept)
    assert tokens > 0
    with pytest.raises(ValueError, match="no sampled answer was right"):
        rejection_sample(sampler, PROBLEMS, SMALL, reward=each(lambda *_: 0.0))


def test_kl_is_the_mean_gap_of_sequence_logprobs(policy: tinker.TrainingClient) -> None:
    """KL(policy || reference) >= 0, against the same sum computed token by token."""
    tokenizer = policy.get_tokenizer()
    reference = policy.save_weights_and_get_sampling_client().result()
    list(sft.train(policy, SHOWN, sft.Config(steps=20, batch_size=8)))
    sampler = policy.save_weights_and_get_sampling_client().result()
    prompts = [chat_prompt(tokenizer, p.question) for p in PROBLEMS]
    groups = sample_groups(sampler, tokenizer, prompts, 8, max_tokens=24, seed=0)
    flat = [r for group in groups for r in group]
    gaps = []
    for r in flat:
        whole = tinker.ModelInput.from_ints(r.prompt + r.tokens)
        scored = reference.compute_logprobs(whole).result()[len(r.prompt) :]
        gaps.append(sum(a - b for a, b in zip(r.logprobs, scored, strict=True) if b is not None))
    assert kl_from(reference, flat) == pytest.approx(sum(gaps) / len(gaps), abs=1e-4)
    assert kl_from(reference, flat) > 1.0


class Fixed:
    """A problem whose G answers are right as it says."""

    solution = ""

    def __init__(self, question: str) -> None:
        self.key = self.question = question

    def grade(self, completion: str) -> Grade:
        return Grade(correct=completion == "1", parsed=True)


def scripted(sampler: Any, problems: Any, group_size: int, **how: Any) -> list[list[Rollout]]:
    """A play without a model: problem "0110" is answered wrong, right, right, wrong."""
    return [
        [Rollout([1], [7], [-1.0], letter, True, cost=0.25, counts={"calls": 2.0})
         for letter in problem.question[:group_size]]
        for problem in problems
    ]  # fmt: skip


def test_groups_without_contrast_are_replaced_as_far_as_the_rounds_go() -> None:
    problems = [Fixed(q) for q in ["0000 a", "1111 b", "0000 c", "0110 d", "1000 e", "0011 f"]]
    for seed in range(20):
        seen = []
        for rounds in (1, 2, 6):
            cfg = Config(prompts=2, group_size=4, rounds=rounds, seed=seed)
            batch = sample_batch(None, problems, cfg, 0, play=scripted)  # type: ignore[arg-type]
            keys = [p.key for p in batch.items]
            assert len(set(keys)) == len(keys)  # nothing is tried twice in a step
            useful = [key for key in keys if len(set(key[:4])) > 1]
            assert [p.key for p in batch.with_contrast().items] == useful
            assert len(useful) <= 2
            # Right answers are paid 1, and every rollout costs a quarter.
            paid = [[float(letter) - 0.25 for letter in key[:4]] for key in keys]
            assert batch.rewards.tolist() == paid
            seen.append(keys)
        assert len(seen[0]) == 2
        assert seen[0] == seen[1][:2] == seen[2][:2]  # more rounds only add to the first


def test_every_batch_is_sampled_with_a_seed_of_its_own() -> None:
    """Of each step, of each round within it, and of each run."""
    used: list[int] = []

    def noting(sampler: Any, problems: Any, group_size: int, **how: Any) -> list[list[Rollout]]:
        used.append(how["seed"])
        return scripted(sampler, problems, group_size, **how)

    for seed in (0, 1):
        cfg = Config(prompts=2, group_size=4, rounds=3, seed=seed)
        for step in range(3):
            flat = [Fixed(f"0000 {i}") for i in range(6)]  # so that all rounds are played
            sample_batch(None, flat, cfg, step, play=noting)  # type: ignore[arg-type]
    assert len(used) == len(set(used)) >= 2 * 3 * 2


def test_the_advantage_stays_on_what_the_policy_wrote() -> None:
    talk = Rollout([1, 2], [5, 6, 7], [-1.0, 0.0, -2.0], "", True, sampled=[True, False, True])
    lone = Rollout([1, 2], [8], [-1.0], "", True)
    data = rlvr_datums([[talk, lone]], torch.tensor([[1.0, -1.0]]), seq_mean_token_mean)
    found = [d.loss_fn_inputs["advantages"].to_torch().tolist() for d in data]
    assert found == [[0.0, 0.25, 0.0, 0.25], [0.0, -0.5]]  # 1/2 of the batch, over 2 tokens and 1
    masks = [with_sequence_mask(d).loss_fn_inputs["sequence_ratio_mask"] for d in data]
    assert [m.to_torch().tolist() for m in masks] == [[0, 1, 0, 1], [0, 1]]

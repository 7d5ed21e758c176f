"""Reinforcement learning with verifiable rewards: sample, verify, reinforce.

For each prompt the policy answers G times, a verifier scores each answer, and every token of an
answer is pushed up or down by how much better the answer did than its group:

    L = - sum_i sum_t rho_it A_i / N,    rho_it = p(y_it | ...) / p_sampler(y_it | ...),

with A_i = r_i - mean(r) and N the number of sampled completions, a constant (Tulu 3,
arXiv:2411.15124; GRPO, arXiv:2402.03300, with the corrections of Dr. GRPO, arXiv:2503.20783).
There is no value model: the group is the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tinker
import torch
from torch import Tensor

from posttrain.advantages import centred, without_contrast
from posttrain.datums import batch_indices, chat_prompt, policy_datum
from posttrain.rollouts import Rollout, kl_from, sample_groups
from posttrain.tasks.problem import Demonstration, Item, Problem

# (P items, P groups of G rollouts) to their (P, G) rewards, and what else is worth plotting.
# A judge that is a model reads a whole batch at once; `each` makes one of a verifier.
Reward = Callable[[Sequence[Any], Sequence[Sequence[Rollout]]], tuple[Tensor, dict[str, float]]]
Verifier = Callable[[Any, str], float]  # (problem, answer) to its reward
Advantages = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3  # constant
    prompts: int = 16  # P, distinct problems a step
    group_size: int = 8  # G, answers to each
    max_tokens: int = 160  # of an answer
    steps: int = 60
    reuse: int = 1  # optimizer steps on each batch of samples; above 1 the clip of ppo matters
    kl_every: int = 10  # steps between measurements of the distance from the start
    seed: int = 0  # order of the problems, and sampling


def right_answer(problem: Problem, answer: str) -> float:
    """The outcome reward: 1 for a right final answer, 0 for a wrong or unreadable one."""
    return float(problem.grade(answer).correct)


def each(verifier: Verifier) -> Reward:
    """The reward that asks `verifier` about one answer after the other."""

    def rewards(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        pairs = zip(batch_P, groups_P_G, strict=True)
        return torch.tensor([[verifier(p, r.text) for r in group] for p, group in pairs]), {}

    rewards.__name__ = getattr(verifier, "__name__", "rewards")  # what a run's config records
    return rewards


OUTCOME = each(right_answer)


def rlvr_datums(groups_P_G: Sequence[Sequence[Rollout]], advantages_P_G: Tensor) -> list[Any]:
    """Datums of all completions, weighed by 1 / N so that the step size does not depend on N.

    Completions without advantage, and so groups without contrast, are left out: their gradient is
    zero.
    """
    n = advantages_P_G.numel()
    return [
        policy_datum(rollout.prompt, rollout.tokens, rollout.logprobs, advantage / n)
        for group, row in zip(groups_P_G, advantages_P_G.tolist(), strict=True)
        for rollout, advantage in zip(group, row, strict=True)
        if advantage
    ]


def rollout_batch(
    sampler: tinker.SamplingClient, problems: Sequence[Item], cfg: Config, step: int
) -> tuple[list[Item], list[list[Rollout]]]:
    """The problems of one step, and G answers to each."""
    tokenizer = sampler.get_tokenizer()
    batch = batch_indices(len(problems), cfg.prompts, cfg.seed, step // cfg.reuse)
    batch_P = [problems[i] for i in batch]
    groups_P_G = sample_groups(
        sampler, tokenizer, [chat_prompt(tokenizer, p.question) for p in batch_P], cfg.group_size,
        max_tokens=cfg.max_tokens, seed=cfg.seed * 100_003 + step,
    )  # fmt: skip
    return batch_P, groups_P_G


def train(
    policy: tinker.TrainingClient,
    problems: Sequence[Item],
    cfg: Config,
    *,
    reward: Reward = OUTCOME,
    advantages: Advantages = centred,
    loss: Any = "importance_sampling",
    reference: tinker.SamplingClient | None = None,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on.

    Args:
        reward: of all answers of a step; by default 1 for a right one, and then the problems must
            be able to grade. Its metrics are yielded with those of `rollout_metrics`.
        advantages: `(P, G)` rewards to `(P, G)` advantages.
        loss: a policy-gradient loss of the server, `importance_sampling` or `ppo`.
        reference: the policy before training, to measure KL(policy || reference).
    """
    for step in range(start, cfg.steps):
        if step % cfg.reuse == 0 or step == start:
            sampler = policy.save_weights_and_get_sampling_client().result()
            batch_P, groups_P_G = rollout_batch(sampler, problems, cfg, step)
            rewards_P_G, judged = reward(batch_P, groups_P_G)
            data_D = rlvr_datums(groups_P_G, advantages(rewards_P_G))
        metrics = rollout_metrics(batch_P, groups_P_G, rewards_P_G) | judged
        if reference is not None and step % cfg.kl_every == 0:
            metrics["kl"] = kl_from(reference, [group[0] for group in groups_P_G])
        if data_D:
            backward = policy.forward_backward(data_D, loss)
            update = policy.optim_step(tinker.AdamParams(learning_rate=cfg.learning_rate))
            metrics["mismatch"] = mismatch(data_D, backward.result())
            update.result()
        yield metrics


def rollout_metrics(
    batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]], rewards_P_G: Tensor
) -> dict[str, float]:
    """What to watch: the loss of a policy gradient says nothing about progress, these do.

    `correct` and `unparsed` are of those items that can grade, and missing where none can.
    """
    flat = [rollout for group in groups_P_G for rollout in group]
    graded = [(p, g) for p, g in zip(batch_P, groups_P_G, strict=True) if hasattr(p, "grade")]
    grades = [p.grade(r.text) for p, group in graded for r in group]
    shares = {"correct": [g.correct for g in grades], "unparsed": [not g.parsed for g in grades]}
    tokens = sum(len(r.tokens) for r in flat)
    return {
        "reward": rewards_P_G.mean().item(),
        **{name: sum(found) / len(found) for name, found in shares.items() if found},
        "no_contrast": without_contrast(rewards_P_G),
        "entropy": -sum(sum(r.logprobs) for r in flat) / tokens,
        "length": tokens / len(flat),
        "truncated": sum(not r.finished for r in flat) / len(flat),
        "sampled_tokens": float(tokens),
        "tokens": float(sum(len(r.prompt) + len(r.tokens) - 1 for r in flat)),
    }


def mismatch(data_D: Sequence[tinker.Datum], output: tinker.ForwardBackwardOutput) -> float:
    """Largest |log p_trainer - log p_sampler| over sampled tokens, in nats.

    On the first update on a batch it measures numerical disagreement alone and must be tiny; it
    is the first thing to look at when a run collapses.
    """
    worst = 0.0
    for datum, result in zip(data_D, output.loss_fn_outputs, strict=True):
        sampled = datum.loss_fn_inputs["advantages"].to_torch() != 0
        gap = result["logprobs"].to_torch() - datum.loss_fn_inputs["logprobs"].to_torch()
        worst = max(worst, gap[sampled].abs().max().item())
    return worst


def rejection_sample(
    sampler: tinker.SamplingClient,
    problems: Sequence[Item],
    cfg: Config,
    *,
    reward: Reward = OUTCOME,
) -> tuple[list[Demonstration], int]:
    """The data of rejection-sampling fine-tuning: the policy's own right answers, each once.

    Draws as many completions as `train` with the same config would, and returns those with
    reward 1 as demonstrations, with the number of sampled tokens (STaR, arXiv:2203.14465;
    RAFT, arXiv:2304.06767).

    Raises:
        ValueError: not one answer was right.
    """
    kept: dict[tuple[str, str], None] = {}
    tokens = 0
    for step in range(0, cfg.steps, cfg.reuse):
        batch_P, groups_P_G = rollout_batch(sampler, problems, cfg, step)
        rewards_P_G, _ = reward(batch_P, groups_P_G)
        for problem, group, row in zip(batch_P, groups_P_G, rewards_P_G.tolist(), strict=True):
            tokens += sum(len(r.tokens) for r in group)
            right = (r for r, paid in zip(group, row, strict=True) if r.finished and paid == 1.0)
            kept.update(dict.fromkeys((problem.question, r.text.strip()) for r in right))
    if not kept:
        raise ValueError("no sampled answer was right: there is nothing to fine-tune on")
    return [Demonstration(question, answer) for question, answer in kept], tokens

"""Reinforcement learning with verifiable rewards: sample, verify, reinforce.

For each prompt the policy answers G times, a verifier scores each answer, and every token of an
answer is pushed up or down by how much better the answer did than its group:

    L = - sum_i sum_t rho_it A_i w_i,    rho_it = p(y_it | ...) / p_sampler(y_it | ...),

with A_i = r_i - mean(r) and w_i = 1/N, N the number of sampled completions (Tulu 3,
arXiv:2411.15124; GRPO, arXiv:2402.03300, with the corrections of Dr. GRPO, arXiv:2503.20783).
There is no value model: the group is the baseline.

Math, code and tools are one method: what differs is how a problem is put to the policy (`play`)
and what is rewarded (`reward`). Only tokens that the policy wrote are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tinker
import torch
from torch import Tensor

from posttrain.advantages import centred, contrast, seq_mean_token_sum, without_contrast
from posttrain.datums import batch_indices, policy_datum, with_sequence_mask
from posttrain.requests import item_seed
from posttrain.rollouts import Play, Rollout, answer, kl_from
from posttrain.tasks.problem import Demonstration, Item, Problem

# (P items, P groups of G rollouts) to their (P, G) rewards, and what else is worth plotting.
# A judge that is a model reads a whole batch at once; `each` makes one of a verifier.
Reward = Callable[[Sequence[Any], Sequence[Sequence[Rollout]]], tuple[Tensor, dict[str, float]]]
Verifier = Callable[[Any, str], float]  # (problem, answer) to its reward
Advantages = Callable[[Tensor], Tensor]
Weights = Callable[[Tensor], Tensor]  # (P, G) lengths in tokens to (P, G) weights of a token


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3  # constant
    prompts: int = 16  # P, distinct problems a step
    group_size: int = 8  # G, answers to each
    max_tokens: int = 160  # of an answer, or of all turns of a conversation
    steps: int = 60
    reuse: int = 1  # optimizer steps on each batch of samples; above 1 the clip of ppo matters
    rounds: int = 1  # of sampling a batch; above 1, groups without contrast are replaced
    kl_every: int = 10  # steps between measurements of the distance from the start
    seed: int = 0  # order of the problems, and sampling


def right_answer(problem: Problem, answer: str) -> float:
    """The outcome reward: 1 for a right final answer, 0 for a wrong or unreadable one."""
    return float(problem.grade(answer).correct)


def each(verifier: Verifier) -> Reward:
    """The reward that asks `verifier` about one answer after the other, and subtracts what each
    rollout cost."""

    def rewards(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        pairs = zip(batch_P, groups_P_G, strict=True)
        paid = [[verifier(p, r.text) - r.cost for r in group] for p, group in pairs]
        return torch.tensor(paid), {}

    rewards.__name__ = getattr(verifier, "__name__", "rewards")  # what a run's config records
    return rewards


OUTCOME = each(right_answer)


@dataclass(frozen=True)
class Batch:
    """All that was sampled for one step: P items, G rollouts of each, and their rewards."""

    items: list[Any]  # P
    groups: list[list[Rollout]]  # P of G
    rewards: Tensor  # (P, G)
    judged: dict[str, float]  # what the reward says is worth plotting

    def with_contrast(self) -> Batch:
        """The groups whose rewards differ."""
        kept = contrast(self.rewards).nonzero().flatten().tolist()
        items, groups = [self.items[i] for i in kept], [self.groups[i] for i in kept]
        return Batch(items, groups, self.rewards[kept], self.judged)

    def __add__(self, other: Batch) -> Batch:
        """Both; of what was judged, the mean over their groups, and the sum where it is tokens."""
        n, m = len(self.items), len(other.items)
        judged = {}
        for name, value in other.judged.items():
            before, total = self.judged.get(name, 0.0), name.endswith("_tokens")
            judged[name] = before + value if total else (n * before + m * value) / (n + m)
        rewards_P_G = torch.cat([self.rewards, other.rewards])
        return Batch(self.items + other.items, self.groups + other.groups, rewards_P_G, judged)


def sample_batch(
    sampler: tinker.SamplingClient,
    problems: Sequence[Item],
    cfg: Config,
    step: int,
    *,
    play: Play = answer,
    reward: Reward = OUTCOME,
) -> Batch:
    """The rollouts of one step.

    With `cfg.rounds` above 1, as many other problems are tried as there were groups without
    contrast, until P groups have some or the rounds are over (dynamic sampling, DAPO,
    arXiv:2503.14476). What was sampled in vain stays in the batch: it was paid for, and measures
    of the policy must not leave out what it always or never gets right.
    """
    tried: set[int] = set()
    batch = Batch([], [], torch.empty(0, cfg.group_size), {})
    for number in range(cfg.rounds):
        missing = cfg.prompts - len(batch.with_contrast().items)
        if not missing:
            break
        order = batch_indices(
            len(problems), cfg.prompts, item_seed(cfg.seed, number), step // cfg.reuse
        )
        picked = [i for i in order if i not in tried][:missing]
        if not picked:
            continue  # this round's problems have all had their turn
        tried.update(picked)
        new_P = [problems[i] for i in picked]
        groups_P_G = play(
            sampler, new_P, cfg.group_size,
            max_tokens=cfg.max_tokens, seed=item_seed(cfg.seed, step, number),
        )  # fmt: skip
        batch += Batch(new_P, groups_P_G, *reward(new_P, groups_P_G))
    return batch


def rlvr_datums(
    groups_P_G: Sequence[Sequence[Rollout]],
    advantages_P_G: Tensor,
    weights: Weights = seq_mean_token_sum,
) -> list[tinker.Datum]:
    """Datums of all completions, weighed so that the step size does not depend on their number.

    Completions without advantage, and so groups without contrast, are left out: their gradient is
    zero. They count in the weights.
    """
    if not groups_P_G:
        return []
    lengths_P_G = torch.tensor([[rollout.length for rollout in group] for group in groups_P_G])
    scaled_P_G = advantages_P_G * weights(lengths_P_G)
    return [
        policy_datum(rollout.prompt, rollout.tokens, rollout.logprobs, rollout.spread(scaled))
        for group, row in zip(groups_P_G, scaled_P_G.tolist(), strict=True)
        for rollout, scaled in zip(group, row, strict=True)
        if scaled
    ]


def train(
    policy: tinker.TrainingClient,
    problems: Sequence[Item],
    cfg: Config,
    *,
    play: Play = answer,
    reward: Reward = OUTCOME,
    advantages: Advantages = centred,
    weights: Weights = seq_mean_token_sum,
    loss: Any = "importance_sampling",
    loss_config: dict[str, float] | None = None,
    reference: tinker.SamplingClient | None = None,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on.

    Args:
        play: how problems are put to the policy: in one turn, or in several with a tool.
        reward: of all answers of a step; by default 1 for a right one, less what the rollout cost,
            and then the problems must be able to grade. Its metrics are yielded too.
        advantages: `(P, G)` rewards to `(P, G)` advantages.
        weights: `(P, G)` lengths to `(P, G)` weights of each token.
        loss: a policy-gradient loss of the server: `importance_sampling`, `ppo`, `cispo`, `dro`,
            or `gspo`, which goes with the weights `seq_mean_token_mean`.
        loss_config: its numbers, such as the bounds of a clip; the server's own by default.
        reference: the policy before training, to measure KL(policy || reference).
    """
    for step in range(start, cfg.steps):
        fresh = step % cfg.reuse == 0 or step == start
        if fresh:
            sampler = policy.save_weights_and_get_sampling_client().result()
            batch = sample_batch(sampler, problems, cfg, step, play=play, reward=reward)
            used = batch.with_contrast() if cfg.rounds > 1 else batch
            data_D = rlvr_datums(used.groups, advantages(used.rewards), weights)
            if loss == "gspo":
                data_D = [with_sequence_mask(datum) for datum in data_D]
        metrics = rollout_metrics(batch.items, batch.groups, batch.rewards)
        metrics |= batch.judged
        if not fresh:  # what was sampled and judged is paid for once
            metrics |= {name: 0.0 for name in metrics if name.endswith("_tokens")}
        metrics["tokens"] = float(sum(datum.model_input.length for datum in data_D))
        if reference is not None and step % cfg.kl_every == 0:
            firsts = [group[0] for group in batch.groups]
            metrics["kl"] = kl_from(reference, firsts)
            scored = metrics.get("scored_tokens", 0.0)
            metrics["scored_tokens"] = scored + sum(len(r.prompt) + len(r.tokens) for r in firsts)
        if data_D:
            backward = policy.forward_backward(data_D, loss, loss_config)
            update = policy.optim_step(tinker.AdamParams(learning_rate=cfg.learning_rate))
            metrics["mismatch"] = mismatch(data_D, backward.result())
            update.result()
        yield metrics


def rollout_metrics(
    batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]], rewards_P_G: Tensor
) -> dict[str, float]:
    """What to watch: the loss of a policy gradient says nothing about progress, these do.

    Means over rollouts, among them what the other side of a conversation counted; the entropy is
    in nats per token that the policy wrote. `correct` and `unparsed` are of those items that can
    grade, and missing where none can.
    """
    flat = [rollout for group in groups_P_G for rollout in group]
    graded = [(p, g) for p, g in zip(batch_P, groups_P_G, strict=True) if hasattr(p, "grade")]
    grades = [p.grade(r.text) for p, group in graded for r in group]
    shares = {"correct": [g.correct for g in grades], "unparsed": [not g.parsed for g in grades]}
    tokens = sum(r.length for r in flat)
    return {
        "reward": rewards_P_G.mean().item(),
        **{name: sum(found) / len(found) for name, found in shares.items() if found},
        "no_contrast": without_contrast(rewards_P_G),
        "groups": float(len(groups_P_G)),
        "entropy": -sum(sum(r.logprobs) for r in flat) / tokens,
        "length": tokens / len(flat),
        "truncated": sum(not r.finished for r in flat) / len(flat),
        "sampled_tokens": float(tokens),
        **{name: sum(r.counts[name] for r in flat) / len(flat) for name in flat[0].counts},
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
    play: Play = answer,
    reward: Reward = OUTCOME,
) -> tuple[list[Demonstration], int]:
    """The data of rejection-sampling fine-tuning: the policy's own right answers, each once.

    Draws as many completions as `train` with the same config would, and returns those with
    full reward as demonstrations, with the number of sampled tokens (STaR, arXiv:2203.14465;
    RAFT, arXiv:2304.06767). Full is 1, before what the answer cost.

    Raises:
        ValueError: not one answer was right.
    """
    kept: dict[Demonstration, None] = {}
    tokens = 0
    for step in range(0, cfg.steps, cfg.reuse):
        batch = sample_batch(sampler, problems, cfg, step, play=play, reward=reward)
        rows = batch.rewards.tolist()
        for problem, group, row in zip(batch.items, batch.groups, rows, strict=True):
            tokens += sum(r.length for r in group)
            right = (
                rollout
                for rollout, paid in zip(group, row, strict=True)
                if rollout.finished and paid + rollout.cost > 1 - 1e-6
            )
            kept.update(dict.fromkeys(demonstration(problem.question, r) for r in right))
    if not kept:
        raise ValueError("no sampled answer was right: there is nothing to fine-tune on")
    return list(kept), tokens


def demonstration(question: str, rollout: Rollout) -> Demonstration:
    """What the policy wrote, to be imitated; what others said in between stays theirs."""
    whole = "".join(rollout.turns)
    if len(rollout.turns) == 1:
        return Demonstration(question, whole.strip())
    first, *middle, last = rollout.turns
    turns = (first.lstrip(), *middle, last.rstrip())
    return Demonstration(question, "".join(turns), turns)

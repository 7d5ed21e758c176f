"""Reinforcement learning from human feedback: raise a learned reward, at a price for moving away.

Maximise for each prompt x

    J(p) = E_{y ~ p}[r(x, y)] - beta KL(p || p_ref)

(Ziegler et al. 2019, arXiv:1909.08593; InstructGPT, arXiv:2203.02155, eq. 2), where r is a reward
model and p_ref the policy that RL starts from. Its optimum is p_ref exp(r / beta) / Z.

The price is part of the reward. A whole answer is paid

    r(x, y) - beta (log p(y|x) - log p_ref(y|x)),

and then the loop is that of RLVR. The policy gradient of this payment is the gradient of J: the
payment depends on p itself, but that adds E[grad log p] = 0. (To put a sampled KL into the loss
instead is not the same: differentiated, log p - log p_ref has a mean gradient of zero.) A price per
token, charged to what follows it, has the same mean; one number an answer needs nothing but the
group's baseline.

A reward model is trusted only near the answers it was trained on: the further the policy moves, the
less of what it gains is real (`posttrain.overoptimisation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tinker
import torch
from torch import Tensor

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.advantages import centred, seq_mean_token_sum
from posttrain.datums import same_tokenizer
from posttrain.methods import rlvr
from posttrain.methods.reward_model import GOOD, good_prompt
from posttrain.methods.rlvr import Advantages, Reward, Weights
from posttrain.rollouts import Rollout, log_ratios, sample_answers
from posttrain.tasks.problem import Demonstration, Item
from posttrain.verdicts import verdicts

Combine = Callable[[Tensor], Tensor]  # rewards of M models (M, P, G) to (P, G)


@dataclass(frozen=True)
class Config(rlvr.Config):
    """The loop's, and the price."""

    beta: float = 0.1  # units of reward per nat of KL(p || p_ref)


def mean(rewards_M_P_G: Tensor) -> Tensor:
    """The mean over reward models."""
    return rewards_M_P_G.mean(0)


def worst(rewards_M_P_G: Tensor) -> Tensor:
    """The lowest reward that any model gives: what one overrates, another may not (Coste et al.
    2023, arXiv:2310.02743, section 3)."""
    return rewards_M_P_G.amin(0)


def learned_reward(
    tokenizer: Tokenizer, models: Sequence[tinker.SamplingClient], combine: Combine = mean
) -> Reward:
    """What reward models say about whole batches, nats. Answers cut off are judged as they are.

    Its metrics: `proxy`, the mean reward; `unreadable`, the share of verdicts in which a model
    would rather say something else, used all the same; `scored_tokens`.

    Args:
        tokenizer: the policy's.

    Raises:
        ValueError: no model was given, or one has another tokenizer.
    """
    if not models:
        raise ValueError("no reward model was given")
    for model in models:
        same_tokenizer(tokenizer, model.get_tokenizer())

    def learned(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        pairs = zip(batch_P, groups_P_G, strict=True)
        texts = [good_prompt(item.question, r.text) for item, group in pairs for r in group]
        asked = [verdicts(model, texts, GOOD.answers) for model in models]
        gaps = torch.tensor([[verdict.gap for verdict in found] for found, _ in asked])
        rewards_P_G = combine(gaps.view(len(models), len(groups_P_G), -1))
        odd = sum(not verdict.readable for found, _ in asked for verdict in found)
        return rewards_P_G, {
            "proxy": rewards_P_G.mean().item(),
            "unreadable": odd / gaps.numel(),
            "scored_tokens": float(sum(scored for _, scored in asked)),
        }

    return learned


def priced(rewards_P_G: Tensor, log_ratios_P_G: Tensor, beta: float) -> Tensor:
    """r - beta (log p - log p_ref), the payment of each answer, in units of reward.

    Args:
        log_ratios_P_G: log p(y|x) - log p_ref(y|x), summed over tokens, nats.
    """
    return rewards_P_G - beta * log_ratios_P_G


def kl_priced(reward: Reward, reference: tinker.SamplingClient, beta: float) -> Reward:
    """`reward` minus beta times the sampled KL(p || p_ref) of each answer, `reference` being p_ref.

    Adds to the metrics `kl`, nats per answer, a mean over all answers; and to `scored_tokens`.

    Raises:
        ValueError: beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta is the price of KL, so it cannot be negative: {beta}")

    def paid(
        batch_P: Sequence[Any], groups_P_G: Sequence[Sequence[Rollout]]
    ) -> tuple[Tensor, dict[str, float]]:
        rewards_P_G, metrics = reward(batch_P, groups_P_G)
        flat = [rollout for group in groups_P_G for rollout in group]
        log_ratios_P_G = torch.tensor(log_ratios(reference, flat)).view_as(rewards_P_G)
        scored = sum(len(r.prompt) + len(r.tokens) for r in flat)
        return priced(rewards_P_G, log_ratios_P_G, beta), {
            **metrics,
            "kl": log_ratios_P_G.mean().item(),
            "scored_tokens": metrics.get("scored_tokens", 0.0) + scored,
        }

    return paid


def train(
    policy: tinker.TrainingClient,
    items: Sequence[Item],
    cfg: Config,
    *,
    reward: Reward,
    reference: tinker.SamplingClient,
    advantages: Advantages = centred,
    weights: Weights = seq_mean_token_sum,
    loss: Any = "importance_sampling",
    loss_config: dict[str, float] | None = None,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on; what `rlvr.train` and the reward yield.

    The metric `reward` is the payment, `proxy` what the reward model says, and `kl` the distance.

    Args:
        reward: `learned_reward` of one model or of several.
        reference: the policy that RL starts from.
        advantages, weights, loss, loss_config: as in `rlvr.train`.

    Raises:
        ValueError: the reference has another tokenizer, or beta is negative.
    """
    same_tokenizer(policy.get_tokenizer(), reference.get_tokenizer())
    payment = kl_priced(reward, reference, cfg.beta)
    yield from rlvr.train(
        policy, items, cfg, reward=payment, advantages=advantages, weights=weights,
        loss=loss, loss_config=loss_config, start=start,
    )  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """N answers to each of P items, with their rewards: best-of-n for every n up to N."""

    groups: list[list[Rollout]]  # (P, N)
    rewards: Tensor  # (P, N)
    metrics: dict[str, float]  # of the reward

    @property
    def best(self) -> list[Rollout]:
        """The answer with the highest reward to each item; of equals, the one drawn first."""
        chosen = self.rewards.argmax(1).tolist()
        return [group[i] for group, i in zip(self.groups, chosen, strict=True)]

    @property
    def sampled_tokens(self) -> int:
        return sum(len(r.tokens) for group in self.groups for r in group)


def best_of_n(
    sampler: tinker.SamplingClient,
    items: Sequence[Item],
    reward: Reward,
    n: int,
    *,
    max_tokens: int,
    seed: int = 0,
) -> Pool:
    """n answers to each item, of which the reward picks the best: RLHF without training, at n
    times the price of an answer. `posttrain.overoptimisation` knows its distance from the sampler.

    Raises:
        ValueError: there is no item, or n is below 1.
    """
    if not items or n < 1:
        raise ValueError(f"nothing to choose from: {len(items)} items, n={n}; both need >= 1")
    groups_P_N = sample_answers(sampler, items, n, max_tokens=max_tokens, seed=seed)
    rewards_P_N, metrics = reward(items, groups_P_N)
    return Pool(groups_P_N, rewards_P_N, metrics)


@dataclass(frozen=True)
class Best:
    """The best answer of each group: what to imitate, and what finding it cost."""

    demonstrations: list[Demonstration]
    sampled_tokens: int
    scored_tokens: int


def best_of_groups(
    sampler: tinker.SamplingClient, items: Sequence[Item], cfg: rlvr.Config, *, reward: Reward
) -> Best:
    """The data of rejection-sampling fine-tuning where no answer is right or wrong: of each group
    that `train` with this config would draw from `sampler`, the answer with the highest reward
    (RAFT, arXiv:2304.06767). One that was cut off is no answer to imitate, so its group gives none.

    Raises:
        ValueError: every best answer was cut off.
    """
    best, sampled, scored = [], 0, 0.0
    for step in range(0, cfg.steps, cfg.reuse):
        batch = rlvr.sample_batch(sampler, items, cfg, step, reward=reward)
        sampled += sum(len(r.tokens) for group in batch.groups for r in group)
        scored += batch.judged.get("scored_tokens", 0.0)
        for item, group, i in zip(
            batch.items, batch.groups, batch.rewards.argmax(1).tolist(), strict=True
        ):
            if group[i].finished:
                best.append(rlvr.demonstration(item.question, group[i]))
    if not best:
        raise ValueError(f"all best answers were cut off at max_tokens={cfg.max_tokens}")
    return Best(best, sampled, int(scored))

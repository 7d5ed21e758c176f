"""The arms of the RLHF lesson: a cold start, RL against a learned reward, and its controls.

All arms of a seed share the start, the comparisons of its answers, and the reward model that was
trained on them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import tinker

from posttrain import overoptimisation
from posttrain import pairs as pairing
from posttrain.lab import rewarded, texts
from posttrain.lab.arms import dpo as dpo_arms
from posttrain.lab.arms.rlvr import FULL_RL, cold_start_config, shared_start
from posttrain.lab.arms.sft import FULL_RATE as FULL_SFT
from posttrain.lab.compare import Claim, Experiment, Headline, Picked, Trained, at_rate
from posttrain.lab.raters import Rater, rater_of
from posttrain.lab.rewarded import on_rewarded_texts
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World
from posttrain.ledger import Ledger
from posttrain.methods import reward_model, rlhf, rlvr, sft
from posttrain.methods.rlhf import best_of_groups, best_of_n, learned_reward
from posttrain.methods.rlvr import Reward
from posttrain.overoptimisation import best_of_n_kl
from posttrain.runs import write_json
from posttrain.scale import pick
from posttrain.tasks.problem import Demonstration, Preference


def reward_config(world: World, seed: int) -> reward_model.Config:
    """How the reward model is trained."""
    scale = world.scale
    return reward_model.Config(
        learning_rate=pick(scale, smoke=1e-3, laptop=3e-3, full=FULL_SFT),
        batch_size=pick(scale, smoke=4, laptop=16, full=64),
        steps=pick(scale, smoke=2, laptop=128, full=150),  # about one epoch
        seed=seed,
    )


def rlhf_config(
    world: World, seed: int, rate: float | None = None, beta: float | None = None
) -> rlhf.Config:
    """The configuration of the RLHF lesson at the world's scale. `beta` is by default that of DPO,
    which has the same objective in the same unit: the logit of a comparison."""
    scale = world.scale
    cfg = rlhf.Config(
        steps=world.steps(smoke=2, laptop=60, full=100),
        prompts=pick(scale, smoke=4, laptop=8, full=32),
        group_size=pick(scale, smoke=4, laptop=8, full=16),
        max_tokens=world.max_tokens,
        beta=dpo_arms.beta_of(world) if beta is None else beta,
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_RL)


def comparisons(
    first: Stage, rater: Rater, world: World, folder: Path, seed: int
) -> tuple[list[Preference], Ledger]:
    """Pairs of the start's own answers, as DPO has them, but several about each request: a reward
    model wants thousands (Gao et al. 2023, arXiv:2210.10760, section 3.5)."""
    often = pick(world.scale, smoke=1, laptop=4, full=1)
    many = replace(world, train=[*world.train] * often)
    return dpo_arms.on_policy(first, rater, many, folder, seed)


def longest_judged(world: World) -> int:
    """Tokens of a question with an answer, and of the words around them."""
    return dpo_arms.longest_pair(world) + world.max_tokens


@dataclass(frozen=True)
class Ready:
    """What RL and its controls begin with."""

    first: Stage
    rater: Rater
    reward: Reward  # the learned one
    cost: Ledger  # of all of it


def prepared(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Ready:
    """The start, and a reward model of what it is preferred for: made by the first arm of a seed,
    found by the others. The reward model goes on from the start, which can read a story."""
    rater, first = rater_of(service, world), shared_start(service, world, folder, seed)
    shown, cost = comparisons(first, rater, world, folder, seed)
    tokenizer = first.sampler.get_tokenizer()
    pairs = reward_model.reward_pairs(tokenizer, shown, max_tokens=longest_judged(world))
    cfg = reward_config(world, seed)
    judge = run_stage(
        service, world, folder.parent / f"seed-{seed}-reward-model",
        lambda model, at: reward_model.train(model, pairs, cfg, start=at), cfg,
        start=first.checkpoint, extra={"pairs": len(pairs)}, show=("loss", "accuracy"),
    )  # fmt: skip
    total = first.cost(world.parameters) + cost + judge.cost(world.parameters)
    return Ready(first, rater, learned_reward(tokenizer, [judge.sampler]), total)


def optimise(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    beta: float | None = None,
) -> Trained:
    """RL against the learned reward, at the world's price of KL or at another."""
    ready = prepared(service, world, folder, seed)
    cfg, first = rlhf_config(world, seed, rate, beta), ready.first
    stage = run_stage(
        service, world, folder,
        lambda policy, at: rlhf.train(
            policy, world.train, cfg, reward=ready.reward, reference=first.sampler, start=at
        ),
        cfg, start=first.checkpoint, show=("proxy", "kl", "entropy", "length"),
    )  # fmt: skip
    cost = ready.cost + stage.cost(world.parameters)
    return Trained(stage, cost, first.sampler, ready.rater, ready.reward)


def control_config(world: World, seed: int, rate: float | None = None) -> sft.Config:
    """The same budget for SFT: as many steps, and as many answers a step."""
    budget = rlhf_config(world, seed)
    cfg = sft.Config(
        steps=budget.steps, batch_size=budget.prompts * budget.group_size, seed=seed
    )  # fmt: skip
    return at_rate(cfg, world, rate, full=FULL_SFT)


def imitate_best(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
) -> Trained:
    """Rejection sampling: SFT on the best of each group by the same reward model, with RL's number
    of samples and steps."""
    ready = prepared(service, world, folder, seed)
    budget, first = rlhf_config(world, seed), ready.first
    kept = folder.parent / f"seed-{seed}-best.json"
    if not kept.exists():
        found = best_of_groups(first.sampler, world.train, budget, reward=ready.reward)
        write_json(kept, asdict(found))
    stored = json.loads(kept.read_text())
    best = [Demonstration(d["question"], d["answer"]) for d in stored["demonstrations"]]
    cfg = control_config(world, seed, rate)
    stage = run_stage(
        service, world, folder,
        lambda policy, at: sft.train(policy, best, cfg, start=at), cfg,
        start=first.checkpoint, extra={"demonstrations": len(best)}, show=("loss",),
    )  # fmt: skip
    cost = ready.cost + stage.cost(world.parameters)
    cost.sample(stored["sampled_tokens"], world.parameters)
    cost.score(stored["scored_tokens"], world.parameters)
    return Trained(stage, cost, first.sampler, ready.rater, ready.reward)


def choices(world: World) -> int:
    """The n of best-of-n at which answering the held-out items takes as many samples as RL does
    while it trains; at least 2."""
    cfg = rlhf_config(world, 0)
    samples = cfg.steps * cfg.prompts * cfg.group_size
    return max(2, round(samples / (len(world.test) * world.k)))


def choose(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """Best-of-n: no training, but n samples of the start for each answer."""
    ready = prepared(service, world, folder, seed)
    first, n = ready.first, choices(world)
    pool = best_of_n(
        first.sampler, [item for item in world.test for _ in range(world.k)], ready.reward, n,
        max_tokens=world.max_tokens, seed=seed,
    )  # fmt: skip
    best, cost = pool.best, ready.cost
    groups = [best[i : i + world.k] for i in range(0, len(best), world.k)]
    cost.sample(pool.sampled_tokens, world.parameters)
    cost.score(int(pool.metrics["scored_tokens"]), world.parameters)
    picked = Picked(groups, best_of_n_kl(n))
    return Trained(first, cost, first.sampler, ready.rater, ready.reward, picked)


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The cold start itself, which the others are compared with; the reward model rates it too."""
    ready = prepared(service, world, folder, seed)
    cost = ready.first.cost(world.parameters)
    return Trained(ready.first, cost, ready.first.sampler, ready.rater, ready.reward)


EXPERIMENT = Experiment(
    name="methods/rlhf",
    arms={
        "SFT start": start_only,
        "RLHF": partial(optimise, rate=2e-3),
        "RLHF without a price": partial(optimise, rate=2e-3, beta=0.0),
        "best of n": choose,
        "rejection sampling": partial(imitate_best, rate=3e-3),
    },
    claims=[
        Claim("RLHF's stories are better than those of the start",
              "RLHF", "SFT start", "test/gold"),
        Claim("RLHF's stories are better than those of SFT on the best of n by the same reward "
              "model, at equal budget", "RLHF", "rejection sampling", "test/gold"),
        Claim("RLHF wins more often against the start than that SFT",
              "RLHF", "rejection sampling", "test/win_rate"),
        Claim("RLHF's stories are better than the best of n by the same reward model, at as many "
              "samples", "RLHF", "best of n", "test/gold"),
        Claim("Without a price RL pleases the reward model more",
              "RLHF without a price", "RLHF", "test/proxy"),
        Claim("Without a price gold falls behind the proxy further",
              "RLHF without a price", "RLHF", "test/overrated"),
        Claim("With a price the stories are better than without one",
              "RLHF", "RLHF without a price", "test/gold"),
    ],
    rates={
        "RLHF": (1e-3, 2e-3, 3e-3),
        "rejection sampling": (1e-3, 3e-3, 6e-3),
    },
    headline=Headline("SFT start", "RLHF", "rejection sampling", "test/gold"),
    configs=lambda world: {
        "cold start": asdict(cold_start_config(world, 0)),
        "reward model": asdict(reward_config(world, 0)),
        "rlhf": asdict(rlhf_config(world, 0)),
        "control": asdict(control_config(world, 0)),
        "best of n": choices(world),
    },
    sources=[
        reward_model, rlhf, rlvr, sft, pairing, overoptimisation, texts, rewarded,
        dpo_arms, sys.modules[__name__],
    ],
    measure=on_rewarded_texts,
    chosen_by=("test/gold",),
    tasks=("stories", "ultrafeedback"),
)  # fmt: skip

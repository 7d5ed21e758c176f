# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Reinforcement learning from human feedback
#
# ## Concept
#
# For most requests no program can check an answer, but people can *compare* two. RLHF turns their
# comparisons into a reward in three stages ([InstructGPT](https://arxiv.org/abs/2203.02155)):
#
# 1. **SFT**: imitate demonstrations. This gives a policy worth comparing, $p_\text{ref}$.
# 2. **Reward model**: learn a score $r(x, y)$ that predicts who wins,
#    $L = -\log \sigma(r(x, y_w) - r(x, y_l))$, for a chosen answer $y_w$ and a rejected one $y_l$.
# 3. **RL** against this score, at a price for every nat that the policy moves away,
#    $$J(p) = \mathbb{E}_{y\sim p}\,[r(x, y)] - \beta\, \mathrm{KL}(p \,\|\, p_\text{ref}).$$
#
# The score is a *proxy*. It was learned from answers of $p_\text{ref}$, and the policy is paid for
# finding answers that it overrates. So the proxy goes on rising after true quality has stopped to
# ([Gao et al.](https://arxiv.org/abs/2210.10760)). With the distance
# $d = \sqrt{\mathrm{KL}(p \,\|\, p_\text{ref})}$ they find that the gain in true quality follows
# $d\,(a - b \log d)$ by RL, and $d\,(a - b\,d)$ when the best of $n$ samples is taken instead.
#
# This lesson writes stories on request. A story has a hidden quality, its *gold* score, which real
# post-training never gets to see. Here it is a function, so both curves can be drawn. A simulated
# human compares two stories by gold, with noise, and training sees these labels only.

# %% [markdown]
# ## Setup

# %%
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from posttrain.connect import connect
from posttrain.lab.arms.rlhf import longest_judged, reward_config, rlhf_config
from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.raters import rater_of
from posttrain.lab.rewarded import gold_means
from posttrain.lab.texts import score_texts
from posttrain.lab.worlds import world_of
from posttrain.methods import reward_model, rlhf, sft
from posttrain.pairs import sample_pairs
from posttrain.plots import curves, estimates, gains
from posttrain.progress import progress
from posttrain.rollouts import kl_from, sample_answers
from posttrain.scale import pick, scale_from

scale = scale_from()
world = world_of(scale, pick(scale, smoke="stories", laptop="stories", full="ultrafeedback"))
service = connect(quiet=True)
rater = rater_of(service, world)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"{len(world.demonstrations)} demonstrations, {len(world.train)} requests to practise on")

# %% [markdown]
# ### Stage 1: the cold start
#
# A short SFT on stories as people write them. It teaches the chat format, and people's flaws: they
# forget what was asked, mix moods, repeat themselves, ramble.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("rlhf-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()
tokenizer = start.get_tokenizer()

# %% [markdown]
# ### Stage 2: comparisons
#
# The start answers each request several times, and the human says which of two answers is better.
# Some comparisons, about other requests, are kept to test the reward model with.

# %%
often = pick(scale, smoke=1, laptop=2, full=1)
compare = partial(sample_pairs, start, label=rater.label, max_tokens=world.max_tokens, seed=0)
found = compare([*world.train] * often)
held_out = compare(world.validation).preferences
print(f"{len(found.preferences)} pairs of {often * len(world.train)}; left out: {found.truncated} "
      f"cut off, {found.equal} equal, {found.undecided} undecided")  # fmt: skip
shown = held_out[0]
print(f"{shown.question}\n  chosen: {shown.chosen}\n  rejected: {shown.rejected}")

# %% [markdown]
# ### The loss, on four literal pairs
#
# A comparison is about a *difference* of scores: raise both by five, and nothing has changed. So a
# reward has no level of its own, and rewards of different requests need not compare.

# %% tags=["inline"]
from posttrain.methods.reward_model import bradley_terry

# %%
scores_of = {
    "no opinion": (0.0, 0.0),
    "chosen 2 ahead": (1.0, -1.0),
    "the same, 5 higher": (6.0, 4.0),
    "2 ahead for the other": (-1.0, 1.0),
}
for name, (win, lose) in scores_of.items():
    print(f"{name:22} loss {bradley_terry(torch.tensor([win]), torch.tensor([lose])).item():.4f}")

# %% [markdown]
# ### A language model as reward model
#
# A reward model usually is a language model with a new head that gives one number. The Tinker API
# has no such heads, and none is needed. We ask "Is it good?", and the score is
# $\log p(\text{yes}) - \log p(\text{no})$. A custom loss sees just these two log-probabilities.

# %% tags=["inline"]
from posttrain.methods.reward_model import Form, good_prompt

# %%
print(good_prompt(shown.question, shown.chosen))

# %% tags=["inline"]
from posttrain.methods.reward_model import GOOD, Config, Pair, batch_loss, reward_pairs, train


# %%
def learn(label, form, cfg):
    """Train a model on the comparisons, as `form` asks about them; metrics and the model."""
    pairs = reward_pairs(tokenizer, found.preferences, form, max_tokens=2 * longest_judged(world))
    model = service.create_training_client_from_state(checkpoint).result()
    history = []
    with progress(label, 0, cfg.steps, ["loss", "accuracy"]) as show:
        for step, metrics in enumerate(train(model, pairs, cfg, form=form), 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
    return history, model.save_weights_and_get_sampling_client().result()


judge_cfg = reward_config(world, seed=0)  # here for one epoch
judge_cfg = replace(judge_cfg, steps=max(1, len(found.preferences) // judge_cfg.batch_size))
judging, judge = learn("reward model", GOOD, judge_cfg)
curves({"reward model": [judging]}, "loss", title="Bradley-Terry loss", ylabel="nats a pair")

# %% [markdown]
# ### Is it any good?
#
# On comparisons that it has not seen: how often it is right, its loss beside the $\log 2 = 0.693$
# of a coin, and its calibration: among pairs where it is 80 % sure, it should be right in 80 %. The
# labels are noisy, so 100 % cannot be had; gold itself is right in the share printed last.

# %%
quality = reward_model.fidelity(judge, held_out)
print(f"right on {quality.accuracy} of {quality.pairs} held-out pairs, loss {quality.loss:.3f}, "
      f"calibration error {quality.calibration_error:.3f}")  # fmt: skip
print(f"says neither yes nor no, left alone, in {quality.unreadable} of {2 * quality.pairs} "
      "verdicts: the loss is about the gap only")  # fmt: skip
asked = {item.question: item for item in [*world.train, *world.validation]}
if rater.gold is not None:
    told = [[rater.gold(asked[p.question], text) for text in (p.chosen, p.rejected)]
            for p in held_out]  # fmt: skip
    print(f"gold itself is right on {np.mean([win > lose for win, lose in told]):.3f}")

# %% [markdown]
# ### The other way to ask: a pairwise judge
#
# Show both answers, ask which is better. Such a judge is easily drawn to the first or to the second
# place, so it has to be asked in both orders. It gives no reward to climb, but it can compare two
# policies. Trained for fewer steps here, because it reads twice the text.

# %%
pairwise_cfg = replace(judge_cfg, steps=max(1, judge_cfg.steps // 3))
_, pairwise = learn("pairwise judge", reward_model.BETTER, pairwise_cfg)

# %%
from posttrain.verdicts import verdicts

orders = [(p.question, *pair) for p in held_out
          for pair in ((p.chosen, p.rejected), (p.rejected, p.chosen))]  # fmt: skip
said, _ = verdicts(
    pairwise, [reward_model.better_prompt(*order) for order in orders], ("first", "second")
)
gaps_B_2 = np.array([verdict.gap for verdict in said]).reshape(-1, 2)
print(f"chosen shown first: right on {(gaps_B_2[:, 0] > 0).mean():.3f}, "
      f"second: {(gaps_B_2[:, 1] < 0).mean():.3f}")  # fmt: skip
print(f"says the same in both orders: {((gaps_B_2[:, 0] > 0) == (gaps_B_2[:, 1] < 0)).mean():.3f}")
both = reward_model.fidelity(pairwise, held_out, reward_model.BETTER)
estimates(
    {"a coin": replace(quality.accuracy, value=0.5, low=0.5, high=0.5),
     "reward model": quality.accuracy, "pairwise judge, both orders": both.accuracy},
    title="Held-out comparisons", xlabel="share right",
)  # fmt: skip

# %% [markdown]
# ### Stage 3: the payment
#
# The price is part of the reward: an answer is paid
# $r(x, y) - \beta \log \frac{p(y \mid x)}{p_\text{ref}(y \mid x)}$. From there on the loop is that
# of [RLVR](../rlvr/rlvr_train.ipynb): a group of answers to each request, and each answer is pushed
# by how much better it was paid than its group.

# %% tags=["inline"]
from posttrain.methods.rlhf import kl_priced, learned_reward, priced

# %% [markdown]
# Four answers, liked equally. The first has become likelier by 4 nats, the last less likely by 2.
# Without a price there is nothing to choose; with one, the policy is pulled back.

# %%
liked, moved = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[4.0, 1.0, 0.0, -2.0]])
for beta in (0.0, 0.5):
    print(f"beta {beta}: paid {[round(x, 2) for x in priced(liked, moved, beta)[0].tolist()]}")

# %% [markdown]
# ### A check before training
#
# Before the first step the policy *is* the reference: KL is 0, and the payment is the reward. The
# check goes through the whole pipeline with a learning rate of 0.

# %%
reward = learned_reward(tokenizer, [judge])
cfg = replace(
    rlhf_config(world, seed=0, rate=2e-3), steps=pick(scale, smoke=2, laptop=20, full=100)
)
policy = service.create_training_client_from_state(checkpoint).result()
still = replace(cfg, learning_rate=0.0)
first = next(iter(rlhf.train(policy, world.train, still, reward=reward, reference=start)))
print({name: round(first[name], 4) for name in ("reward", "proxy", "kl", "mismatch")})
assert abs(first["kl"]) < 1e-2
assert abs(first["reward"] - first["proxy"]) < 1e-2
assert first["mismatch"] < 1e-3

# %% [markdown]
# ## Training loop
#
# Every few steps the policy answers the same held-out requests. There we measure proxy, distance,
# and gold, which training never sees.

# %%
test = world.test[: pick(scale, smoke=4, laptop=80, full=None)]
answers_of = partial(sample_answers, items=test, max_tokens=world.max_tokens, seed=0)


def examine(groups_P_G):
    """Mean proxy and gold on each held-out request, and the KL from the start."""
    return {
        "proxy": reward(test, groups_P_G)[0].double().mean(1).numpy(),
        "gold": gold_means(rater, test, groups_P_G),
        "kl": kl_from(start, [rollout for group in groups_P_G for rollout in group]),
    }


def practise(label, cfg):
    """RL from the start; what was measured on the way, the policy, and its metrics."""
    policy = service.create_training_client_from_state(checkpoint).result()
    every, trail, history = max(1, cfg.steps // 5), [], []
    with progress(label, 0, cfg.steps, ["proxy", "kl", "length"]) as show:
        steps = rlhf.train(policy, world.train, cfg, reward=reward, reference=start)
        for step, metrics in enumerate(steps, 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
            if step % every == 0 or step == cfg.steps:
                sampler = policy.save_weights_and_get_sampling_client().result()
                trail.append(examine(answers_of(sampler, answers=1)))
    return trail, sampler, history


# %% [markdown]
# ### The price, swept
#
# The same RL three times: without a price, at the price that DPO has in its lesson, and at three
# times that. DPO solves the same problem, and its $\beta$ means the same: how much reward, a logit
# of a comparison, a nat is worth.

# %%
prices = {"no price": 0.0, "RLHF": cfg.beta, "three times the price": 3 * cfg.beta}
runs = {name: practise(name, replace(cfg, beta=beta)) for name, beta in prices.items()}
trails = {name: trail for name, (trail, _, _) in runs.items()}
histories = {name: [history] for name, (_, _, history) in runs.items()}
curves(histories, "proxy", title="What the reward model says", ylabel="nats")

# %%
curves(histories, "kl", title="KL(policy || start)", ylabel="nats per answer")

# %%
curves(histories, "length", title="Length of an answer", ylabel="tokens")

# %% [markdown]
# ### Without training: the best of n
#
# The reward model can also choose among samples of the start. One pool of N answers to each
# request gives the best of n for every n up to N, and the distance is known:
# $\log n - \frac{n-1}{n}$. The pool takes as many samples as one of the runs above.

# %% tags=["inline"]
from posttrain.methods.rlhf import Pool, best_of_n
from posttrain.overoptimisation import best_of_n_kl

# %%
N = max(4, cfg.steps * cfg.prompts * cfg.group_size // len(test))
pool = best_of_n(start, test, reward, N, max_tokens=world.max_tokens, seed=1)
ns = sorted({round(N ** (i / 8)) for i in range(9)})
print(f"{len(test)} requests, {N} answers to each; best of {ns}")
print({n: round(best_of_n_kl(n), 2) for n in ns}, "nats")

# %% [markdown]
# ## Results
#
# ### Before and after
#
# Gold where it is known, and the win rate: how often the answer is better than the start's answer
# to the same request.

# %%
whole = {"SFT start": start, **{name: sampler for name, (_, sampler, _) in runs.items()}}
stories_of = {name: answers_of(sampler, answers=world.k) for name, sampler in whole.items()}
stories_of[f"best of {N}"] = [[best] * world.k for best in pool.best]
scores, distances = {}, {}
for name, groups in stories_of.items():
    measured = scores[name] = score_texts(start, test, groups, stories_of["SFT start"], rater)
    # The best of n are samples of the start, so their log-probabilities show no distance.
    distances[name] = best_of_n_kl(N) if name not in whole else measured.won.kl
    print(f"{name:24} gold {measured.gold}  win rate {measured.won.win_rate}  "
          f"KL {distances[name]:.1f} nats  {measured.length.value:.0f} tokens  "
          f"well-formed {measured.well_formed:.0%}")  # fmt: skip
estimates(
    {name: measured.gold or measured.won.win_rate for name, measured in scores.items()},
    title="Quality of answers to held-out requests",
    xlabel="win rate against the start" if rater.gold is None else "mean gold score",
)

# %% [markdown]
# ### Over-optimisation: proxy and gold against the distance
#
# Both are logits of a comparison, so they can be drawn in one figure: what the reward model
# promises, and what of it is there. The lines are the fitted curves of gold.

# %%
from posttrain.overoptimisation import BEST_OF_N, RL, best_of_n_curve, fit

origin = examine(answers_of(start, answers=1))
names = ["proxy"] if rater.gold is None else ["proxy", "gold"]


def gained(trail, name):
    """(C, U): what each point of a trail has gained on the start, on each request."""
    return np.stack([point[name] - origin[name] for point in trail])


points, fits = {}, {}
for name in names:
    for label, trail in trails.items():
        kls = np.array([point["kl"] for point in trail])
        points[f"{label}, {name}"] = (kls, gained(trail, name).mean(1))
away = [point for point in trails["no price"] if point["kl"] > 0]  # an estimate may fall below
if rater.gold is not None and len(away) > 1:
    fits["no price, gold"] = fit(RL, [point["kl"] for point in away], gained(away, "gold"))
gains(points, {name: f.gain for name, f in fits.items()}, title="RL: promised and real",
      ylabel="gain over the start, points")  # fmt: skip

# %%
proxies_P_N = pool.rewards.double().numpy()
values = {"proxy": proxies_P_N}
if rater.gold is not None:
    values["gold"] = np.array([[rater.gold(item, r.text) for r in group]
                               for item, group in zip(test, pool.groups, strict=True)])  # fmt: skip
best = {name: best_of_n_curve(proxies_P_N, value, ns) for name, value in values.items()}
points = {f"best of n, {name}": (kls, (value - value[0]).mean(1))
          for name, (kls, value) in best.items()}  # fmt: skip
if rater.gold is not None:
    kls, value = best["gold"]
    fits["best of n, gold"] = fit(BEST_OF_N, kls, value - value[0])
gains(points, {name: f.gain for name, f in fits.items() if name in points},
      title="Best of n: promised and real", ylabel="gain over the start, points")  # fmt: skip

# %% [markdown]
# A fitted peak means something where the gain was seen to fall, and little beyond the largest
# distance that was measured. `falls` is the share of resampled sets of requests in which the curve
# ends up falling.

# %%
for name, fitted in fits.items():
    print(f"{name}: a {fitted.a}, b {fitted.b}; falls {fitted.peaked:.0%}; peak at "
          f"{fitted.peak.value:.1f} nats [{fitted.peak.low:.1f}, {fitted.peak.high:.1f}], "
          f"measured up to {fitted.furthest:.1f}")  # fmt: skip

# %% [markdown]
# ### Failure mode: reward hacking
#
# What does the policy do when nothing holds it? Here are the answers without a price that the
# reward model overrates most: those whose proxy rose furthest above their gold.

# %%
last = trails["no price"][-1]
hacked = stories_of["no price"]
if rater.gold is not None:
    promised = last["proxy"] - origin["proxy"]
    real = last["gold"] - origin["gold"]
    print(f"on average: proxy {promised.mean():+.2f}, gold {real.mean():+.2f}")
    for i in np.argsort(real - promised)[:3]:
        print(f"\n{test[i].question}")
        for name in ("SFT start", "no price", "RLHF"):
            text = stories_of[name][i][0].text.strip()
            print(f"  {name} (gold {rater.gold(test[i], text):.1f}): {text}")

# %% [markdown]
# Gold is a sum of parts, so we can also say *what* was bought and what it was paid with.

# %%
from posttrain.tasks import gold

PARTS = ("coverage", "coherence", "length", "mood", "ending", "repetition")
if rater.gold is not None:
    print(f"{'':24}" + "".join(f"{part:>12}" for part in PARTS))
    for name, groups in stories_of.items():
        found_parts = [gold.quality(item, r.text) for item, group in zip(test, groups, strict=True)
                       for r in group]  # fmt: skip
        means = [np.mean([getattr(q, part) for q in found_parts]) for part in PARTS]
        print(f"{name:24}" + "".join(f"{mean:12.2f}" for mean in means))

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison over several seeds, with SFT on the best of each group as the
# control at equal budget (`posttrain run rlhf --seeds 5 --record`).

# %%
import json

for name, measured in scores.items():
    known = "" if measured.gold is None else f"gold {measured.gold.value:.2f}, "
    print(f"This run, {name}: {known}win rate {measured.won.win_rate.value:.2f}, "
          f"KL {distances[name]:.1f} nats")  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use RLHF when answers can be compared but not checked, and you want to go on
# learning from what the policy has become, which DPO cannot. Hold it with a price for KL, and look
# at its answers, or at a measure that it was not trained on: the reward model cannot tell you that
# it is being pleased. If the best of n samples is good enough and you can pay for n samples an
# answer, you need no RL at all.

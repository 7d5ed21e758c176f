# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Reinforcement learning from rubrics
#
# ## Concept
#
# Some answers can be checked by a program, most cannot. But often one can say what a good answer
# has: a *rubric*, a list of statements about the answer, each essential or important, or a pitfall
# that is better avoided. A judge, itself a language model, reads an answer and a statement and says
# how true it is, a credit $c_j \in [0, 1]$. The reward is their weighted sum,
#
# $$r(x, y) = \frac{\sum_j w_j\, c_j(x, y)}{\sum_j \max(w_j, 0)}, \qquad w_j < 0
# \text{ for pitfalls}$$
#
# ([Rubrics as Rewards](https://arxiv.org/abs/2507.17746)). From there on it is RL as with any other
# reward. Between the answer that can be checked and the answer that can only be compared, rubrics
# are what most of a post-training team's work now goes into.
#
# Two things can go wrong, and they are not the same. The *judge* errs, and the policy finds out
# where: it is credited for what is not there. Or the *rubric* leaves out what matters: every
# statement is met and the answer is poor ([arXiv:2605.12474](https://arxiv.org/abs/2605.12474)).
# Here both can be seen, because this world has what real post-training has not: an exact check of
# each statement, and a *gold* score of the story that is in no rubric. Training reads neither.

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from posttrain.connect import connect
from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.arms.rubric_rl import CHECKED, PRICE, ask_of, judge_of, rubric_config
from posttrain.lab.judged import judge_texts, watched
from posttrain.lab.raters import rater_of
from posttrain.lab.rewarded import gold_means
from posttrain.lab.worlds import world_of
from posttrain.methods import rlvr, sft
from posttrain.methods.rlhf import kl_priced
from posttrain.plots import curves, estimates
from posttrain.progress import progress
from posttrain.rollouts import kl_from, sample_answers
from posttrain.scale import pick, scale_from
from posttrain.stats import bootstrap_mean
from posttrain.tasks.rubrics import check, rubric

scale = scale_from()
world = world_of(scale, "rubrics")
service = connect(quiet=True)
rater, model = rater_of(service, world), judge_of(service, world)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"judge {world.judge}; {len(world.train)} requests to practise on")

# %% [markdown]
# ### A rubric
#
# Every request has its own. Some statements have two conditions, of which both must hold.

# %%
request = world.train[0]
print(request.question, "\n")
for criterion in rubric(request):
    print(f"  {criterion.importance.value:10} {criterion.text}")

# %% [markdown]
# ### Before: the cold start
#
# A short SFT on stories as people write them. It teaches the chat format, and people's flaws: they
# forget what was asked, mix moods, repeat themselves, ramble.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("rubric-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()

# %% [markdown]
# ### The judge
#
# It is asked about one statement at a time, in plain words, and its credit is P("yes") where only
# "yes" and "no" are allowed. What it does not answer counts against the story.

# %% tags=["inline"]
from posttrain.methods.rubric_judges import Case, language_judge, settled

# %%
judge = language_judge(model, ask_of(world))
stories = sample_answers(start, [request], 1, max_tokens=world.max_tokens, seed=0)[0]
print(stories[0].text.strip(), "\n")
cases = [Case(request, criterion, stories[0].text) for criterion in rubric(request)]
for case, credit in zip(cases, settled(cases, judge(cases)[0]), strict=True):
    print(f"  judge {credit:.2f}, in truth {check(case.criterion, request, case.text):d}: "
          f"{case.criterion.text}")  # fmt: skip

# %% [markdown]
# How good is it, on many stories of the start? A policy that learns will move to where the judge is
# generous, so the share called true *among statements that are false* matters most.

# %%
probe = world.validation[: pick(scale, smoke=4, laptop=60, full=200)]
written = sample_answers(start, probe, 1, max_tokens=world.max_tokens, seed=1)
on_start = judge_texts(judge, probe, written)
print(", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in on_start.shares.items()))

# %% [markdown]
# ### From credits to a reward, on a literal rubric
#
# Three ways for a story to be imperfect: it lacks something important, it lacks something
# essential, or it has a pitfall. The weighted sum forgives each. The gate multiplies by the credits
# of what is essential: without that, nothing is earned.

# %% tags=["inline"]
from posttrain.methods.rubric_rl import WEIGHTS, essential_gate, weighted_sum

# %%
from posttrain.tasks.rubrics import Criterion, Importance

criteria = [Criterion(importance, ()) for importance in Importance]  # one of each
credits = {"flawless": (1, 1, 0), "lacks the important": (1, 0, 0),
           "lacks the essential": (0, 1, 0), "has the pitfall": (1, 1, 1)}  # fmt: skip
for name, c in credits.items():
    print(f"{name:20} sum {weighted_sum(criteria, c):.2f}  gate {essential_gate(criteria, c):.2f}")

# %% tags=["inline"]
from posttrain.methods.rubric_rl import rubric_reward

# %% [markdown]
# ### A check before training
#
# The reward of the first batch, once more from single credits. And since nothing has moved, the
# price for KL is 0.

# %%
cfg = rubric_config(world, seed=0, rate=2e-3)
cfg = replace(cfg, steps=pick(scale, smoke=2, laptop=8, full=100))


def practise_on(reward, label, cfg=cfg, looks=2):
    """RL from the start at a price for KL; its metrics, what was measured on the way (so many
    `looks`), the policy. Exact scores and gold are only watched."""
    policy = service.create_training_client_from_state(checkpoint).result()
    paid = kl_priced(watched(reward, rater), start, PRICE)
    every, trail, history = max(1, cfg.steps // looks), [], []
    with progress(label, 0, cfg.steps, ["judged", "exact", "kl", "length"]) as show:
        for step, metrics in enumerate(rlvr.train(policy, world.train, cfg, reward=paid), 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
            if step % every == 0 or step == cfg.steps:
                sampler = policy.save_weights_and_get_sampling_client().result()
                trail.append({"step": step, **examine(sampler)[0]})
    return history, trail, sampler


def examine(sampler):
    """Means over held-out requests, and the stories with what the judge and gold say of each."""
    groups = sample_answers(sampler, test, 1, max_tokens=world.max_tokens, seed=0)
    found, golds = judge_texts(judge, test, groups), gold_means(rater, test, groups)
    means = {"judged": found.judged.mean(), "exact": found.exact.mean(),
             "kl": kl_from(start, [rollout for group in groups for rollout in group])}  # fmt: skip
    if golds is not None:
        means["gold"] = golds.mean()
    return {name: float(value) for name, value in means.items()}, found, golds, groups


test = world.test[: pick(scale, smoke=4, laptop=60, full=None)]
reward = rubric_reward(judge, weighted_sum, truth=check)
groups = sample_answers(start, probe[:4], 2, max_tokens=world.max_tokens, seed=0)
rewards_P_G, _ = reward(probe[:4], groups)
cases = [Case(probe[0], criterion, groups[0][0].text) for criterion in rubric(probe[0])]
by_hand = weighted_sum(rubric(probe[0]), settled(cases, judge(cases)[0]))
print(f"reward {rewards_P_G[0, 0]:.4f}, from single credits {by_hand:.4f}")
assert abs(rewards_P_G[0, 0].item() - by_hand) < 1e-4
priced_P_G, told = kl_priced(reward, start, PRICE)(probe[:4], groups)
print(f"KL of the start from itself: {told['kl']:.5f} nats")
assert torch.allclose(priced_P_G, rewards_P_G, atol=1e-2)

# %% [markdown]
# ## Training loop
#
# The loop is that of [RLVR](../rlvr/rlvr_train.ipynb). The reward is the weighted sum minus a price
# for each nat of KL from the start: the judge was trained on readable stories, and a policy that
# moves away for nothing soon writes texts that it cannot judge. The lesson takes fewer steps than
# the comparison over seeds, at twice the learning rate.

# %%
runs = {"weighted sum": practise_on(reward, "weighted sum")}

# %% [markdown]
# ### The remedy: let a program check what a program can
#
# Whether another animal comes, and whether a sentence comes twice: the judge is worst at the first,
# and both are easily counted. Those criteria are taken from the judge.

# %% tags=["inline"]
from posttrain.methods.rubric_rl import exact_of

# %%
hybrid = rubric_reward(judge, weighted_sum, exact=exact_of(*CHECKED), truth=check)
runs["partly checked"] = practise_on(hybrid, "partly checked")

# %% [markdown]
# ## Results
#
# ### Before and after
#
# What the judge says of the stories, what is true, and how good they are by a measure that is in no
# rubric. The first two are one formula, so their difference is what the judge pays for nothing.

# %%
samplers = {"SFT start": start, **{name: sampler for name, (_, _, sampler) in runs.items()}}
ends = {name: examine(sampler) for name, sampler in samplers.items()}
for name, (means, found, _, _) in ends.items():
    told = {**means, **{key.replace("_", " "): share for key, share in found.shares.items()}}
    print(f"{name:16} " + "  ".join(f"{key} {value:.2f}" for key, value in told.items()))
estimates({name: bootstrap_mean(found.exact) for name, (_, found, _, _) in ends.items()},
          title="Rubric met, by the exact check", xlabel="points, of 1")  # fmt: skip

# %%
known = {name: bootstrap_mean(golds) for name, (_, _, golds, _) in ends.items()
         if golds is not None}  # fmt: skip
if known:
    estimates(known, title="Quality of stories, in no rubric", xlabel="mean gold score")

# %% [markdown]
# ### Judged, exact, gold: over training

# %%
before = {"step": 0, **ends["SFT start"][0]}
trails = {name: [before, *trail] for name, (_, trail, _) in runs.items()}
lines = {f"{name}, {key}": [[{"step": point["step"], "points": point[key]} for point in trail]]
         for name, trail in trails.items() for key in ("judged", "exact")}  # fmt: skip
curves(lines, "points", title="What the judge says and what is true, held-out requests",
       ylabel="points, of 1")  # fmt: skip

# %%
if known:
    curves({name: [trail] for name, trail in trails.items()}, "gold",
           title="Quality, in no rubric", ylabel="mean gold score")  # fmt: skip

# %% [markdown]
# ### Criterion by criterion
#
# How far the statements of a kind are met while practising: by the judge, which pays, and in truth.
# The last five steps together:

# %%
history = runs["weighted sum"][0]
subjects = sorted(key.removeprefix("paid/") for key in history[0] if key.startswith("paid/"))


def over_training(subject):
    """How far its statements are met at each step, as the judge pays for them and in truth."""
    return {whose: [[{"step": line["step"], "met": line[f"{key}/{subject}"]} for line in history
                     if f"{key}/{subject}" in line]]
            for whose, key in (("judge", "paid"), ("in truth", "true"))}  # fmt: skip


at_the_end = {
    subject: {whose: np.mean([point["met"] for point in line[-5:]])
              for whose, (line,) in over_training(subject).items()}
    for subject in subjects
}  # fmt: skip
for subject, met in at_the_end.items():
    print(f"{subject:12} " + ", ".join(f"{whose} {share:.2f}" for whose, share in met.items()))

# %%
widest = max(subjects, key=lambda name: abs(np.subtract(*at_the_end[name].values())))
curves(over_training(widest), "met", title=f"Where they differ most: {widest}",
       ylabel="share met")  # fmt: skip

# %%
curves({name: [history] for name, (history, _, _) in runs.items()}, "kl",
       title="KL(policy || start)", ylabel="nats a story")  # fmt: skip

# %% [markdown]
# ### Failure mode: pleasing the judge
#
# The *holistic* judge gets the whole rubric in one question. That is one request a story in place
# of one a statement, and it says less: a judge of this size was never asked so much at once. Here
# the policy is paid for its yes, at the same price for KL.

# %% tags=["inline"]
from posttrain.methods.rubric_rl import holistic_prompt, holistic_reward

# %%
print(holistic_prompt(request, stories[0].text), "\n")
runs["holistic"] = practise_on(holistic_reward(model, ask_of(world)), "holistic")
pleased = runs["holistic"][0]
curves({name: [[{"step": line["step"], "points": line[key]} for line in pleased]]
        for name, key in (("P(yes) of the judge", "judged"), ("exact", "exact"))},
       "points", title="Paid for one question: what the judge says and what is true",
       ylabel="points, of 1")  # fmt: skip

# %% [markdown]
# Where do the judges pay for nothing? Points by subject, criterion by criterion; their sum is the
# difference of judged and exact.

# %%
ends["holistic"] = examine(runs["holistic"][2])
named = sorted({subject for _, found, _, _ in ends.values() for subject in found.parts})
print(f"{'overpaid, points':16}" + "".join(f"{name:>12}" for name in [*named, "in all"]))
for name, (_, found, _, _) in ends.items():
    parts = [found.parts.get(subject, 0.0) for subject in named]
    print(f"{name:16}" + "".join(f"{part:12.3f}" for part in [*parts, found.overpaid.mean()]))

# %% [markdown]
# And what do the stories look like? Two requests, before, after, and with one question for all.

# %%
for i in range(2):
    print(test[i].question)
    for name in ("SFT start", "weighted sum", "holistic"):
        _, found, _, texts = ends[name]
        print(f"  {name}: {texts[i][0].text.strip()[:400]}\n"
              f"    judged {found.judged[i]:.2f}, in truth {found.exact[i]:.2f}")  # fmt: skip

# %% [markdown]
# ### Another aggregate: pass another function
#
# The gate multiplies by the credits of all that is essential: a story that lacks one of them earns
# nothing, whatever else it has.

# %%
short = replace(cfg, steps=pick(scale, smoke=2, laptop=4, full=40))
gated = rubric_reward(judge, essential_gate, truth=check)
variants = {
    "weighted sum": history[: short.steps],
    "essential gate": practise_on(gated, "essential gate", cfg=short, looks=1)[0],
}
curves({name: [found] for name, found in variants.items()}, "exact",
       title="Rubric met while practising, by the exact check", ylabel="points, of 1")  # fmt: skip

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison over several seeds, with SFT on the best of each group by the
# same judge as the control at equal budget (`posttrain run rubric_rl --seeds 5 --record`).

# %%
import json

for name, (means, _, _, _) in ends.items():
    print(f"This run, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in means.items()))
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use rubric RL when you can say what a good answer has, though no program can
# check it. Ask about one statement at a time, and keep a price for KL: one question about all of
# them was cheaper, and taught to please the judge. Measure the judge on your policy's own texts
# before and after, and read them: what is in no rubric is paid for by nobody.

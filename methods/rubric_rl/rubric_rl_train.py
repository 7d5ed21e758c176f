# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Rubric RL
#
# ## Concept
#
# Between a right answer, which a program can check, and a better one, which people can point at,
# lies most of what is asked of language models: answers that should do several things at once. A
# *rubric* lists them. It has a few statements about a good answer to this one request, each
# essential or important, and pitfalls, which are better false. A judge, usually a language model,
# says of each statement how true it is, and an aggregate makes one reward of these credits $c_j$
# ([Rubrics as Rewards](https://arxiv.org/abs/2507.17746), eq. 1):
#
# $$r(x, y) = \frac{\sum_j w_j\, c_j(x, y)}{\sum_j \max(w_j, 0)},$$
#
# where $w_j$ is negative for pitfalls.
#
# The loop is that of [RLVR](../rlvr/rlvr_train.ipynb); only the reward is new. What it brings along
# is a reader who can be fooled. [Rubric hacking](https://arxiv.org/abs/2605.12474) has two forms:
#
# - **The verifier fails**: the judge credits what is not there. Judged score rises, and the exact
#   score, by a reader who makes no mistakes, stays behind.
# - **The rubric is too small**: everything on the list is met, and what is not on it suffers.
#
# On real texts both are hard to see. Here the texts are stories on request in a small language that
# a program can read, so every statement has an exact verdict; and a story has a hidden quality, its
# *gold* score, that is in no rubric. So three curves can be drawn: judged, exact, and gold.

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from posttrain.connect import connect
from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.arms.rubric_rl import CHECKED, ask_of, judge_of, rubric_config
from posttrain.lab.judged import judge_texts, watched
from posttrain.lab.raters import rater_of
from posttrain.lab.rewarded import gold_means
from posttrain.lab.texts import score_texts
from posttrain.lab.worlds import world_of
from posttrain.methods import rlvr, sft
from posttrain.plots import curves, estimates
from posttrain.progress import progress
from posttrain.rollouts import sample_answers
from posttrain.scale import pick, scale_from
from posttrain.stats import bootstrap_mean

scale = scale_from()
world = world_of(scale, "rubrics")
service = connect(quiet=True)
rater = rater_of(service, world)
print(f"{scale} scale, task {world.task}, model {world.model}, judge {world.judge}")
print(f"{len(world.demonstrations)} demonstrations, {len(world.train)} requests to practise on")

# %% [markdown]
# ### A request and its rubric
#
# Each request has four to seven criteria of its own, some of two conditions. A good story meets
# them; the exact check says so.

# %%
from posttrain.tasks.rubrics import check, judge_prompt, rubric

request = world.train[0]
print(request.question)
for criterion in rubric(request):
    verdict = "yes" if check(criterion, request, request.solution) else "no"
    print(f"  {criterion.importance.value:9} {criterion.text}: {verdict}")

# %% [markdown]
# ### Before: the cold start
#
# A short SFT on stories as people write them. It teaches the chat format, and people's flaws: they
# forget what was asked, mix moods, end happily whatever the mood, repeat themselves, ramble.

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
# A language model that is asked one thing at a time: a request, a text, a statement. Its credit is
# $p(\text{yes})$ where only yes and no are allowed, so it can be half sure. What it does not answer
# counts against the text. It was trained on texts by people of all qualities, and never sees gold.

# %%
model, ask = judge_of(service, world), ask_of(world)
print(ask(judge_prompt(request, rubric(request)[0], request.solution)))

# %% tags=["inline"]
from posttrain.methods.rubric_judges import Case, language_judge, settled

# %% [markdown]
# Is it any good? The start answers held-out requests, and judge and check read the same stories.
# `false credit` is the share called true among what is false: what a policy can make use of.

# %%
judge = language_judge(model, ask)
test = world.test[: pick(scale, smoke=3, laptop=40, full=None)]
answers_of = partial(
    sample_answers, items=test, answers=world.k, max_tokens=world.max_tokens, seed=0
)
stories_of = {"SFT start": answers_of(start)}
found = {"SFT start": judge_texts(judge, test, stories_of["SFT start"])}
print(found["SFT start"])
print({name: round(share, 3) for name, share in found["SFT start"].shares.items()})

# %% [markdown]
# Judged and exact score are the same formula, of other credits. So their difference is a sum over
# criteria, and says *where* the judge pays for nothing. Below 0 it pays less than is due.

# %%
for name, points in sorted(found["SFT start"].parts.items(), key=lambda pair: -pair[1]):
    print(f"{name:12} met {found['SFT start'].met[name]:.0%}, overpaid {points:+.3f} a story")
print(f"{'together':12} {found['SFT start'].overpaid.mean():+.3f}")

# %% [markdown]
# ### From credits to a reward
#
# The aggregate is a function of a rubric and its credits. The sum lets a merit make up for a lack;
# behind the gate of what is essential, nothing does.

# %% tags=["inline"]
from posttrain.methods.rubric_rl import WEIGHTS, binary, essential_gate, weighted_sum

# %% [markdown]
# Four sets of credits for the rubric above: a perfect story, one that lacks the first thing, which
# is essential, one of which the judge is nowhere sure, and one with every merit and every pitfall.

# %%
criteria = rubric(request)
perfect = [float(WEIGHTS[criterion.importance] > 0) for criterion in criteria]
credits_of = {
    "perfect": perfect,
    "lacks an essential": [0.0, *perfect[1:]],
    "never sure": [0.5] * len(criteria),
    "merits and pitfalls": [1.0] * len(criteria),
}
for name, credits in credits_of.items():
    print(f"{name:20} sum {weighted_sum(criteria, credits):+.2f}  "
          f"gate {essential_gate(criteria, credits):+.2f}  "
          f"sum of rounded {binary(weighted_sum)(criteria, credits):+.2f}")  # fmt: skip

# %% [markdown]
# The third way does not look at single criteria: show the whole rubric, ask one question. It costs
# a fraction, because the judge reads a text once and not once for each criterion.

# %% tags=["inline"]
from posttrain.methods.rubric_rl import holistic_prompt, holistic_reward

# %%
print(ask(holistic_prompt(request, request.solution)))

# %% [markdown]
# ### The reward
#
# All criteria of all answers of a step are one call of the judge. `truth` is measured and never
# paid. `exact` is a program that answers for some criteria in the judge's place.

# %% tags=["inline"]
from posttrain.methods.rubric_rl import exact_of, rubric_reward

# %% [markdown]
# How do the three rank stories of the start? Correlation over held-out stories with the exact
# score, and with gold, which no rubric mentions.

# %%
ways = {
    "weighted sum": rubric_reward(judge, weighted_sum),
    "essential gate": rubric_reward(judge, essential_gate),
    "holistic": holistic_reward(model, ask),
}
beside = {
    "exact": found["SFT start"].exact,
    "gold": gold_means(rater, test, stories_of["SFT start"]),
}
for name, way in ways.items():
    paid, cost = way(test, stories_of["SFT start"])
    by_item = paid.double().mean(1).numpy()
    told = ", ".join(f"{known} {np.corrcoef(by_item, value)[0, 1]:+.2f}"
                     for known, value in beside.items())  # fmt: skip
    print(f"{name:15} {told}; {cost['scored_tokens']:.0f} tokens read")

# %% [markdown]
# ### A check before training
#
# With the exact check in the judge's place, the reward must be the true reward, and agreement 1.
# Through the whole pipeline, with a learning rate of 0.

# %%
from posttrain.methods.rubric_judges import program_judge

cfg = replace(
    rubric_config(world, seed=0, rate=2e-3), steps=pick(scale, smoke=2, laptop=24, full=100)
)
policy = service.create_training_client_from_state(checkpoint).result()
exact_reward = rubric_reward(program_judge(check), truth=check)
still = replace(cfg, learning_rate=0.0)
first = next(iter(rlvr.train(policy, world.train, still, reward=exact_reward)))
print({name: round(first[name], 4) for name in ("reward", "true_reward", "agreement", "mismatch")})
assert abs(first["reward"] - first["true_reward"]) < 1e-6
assert first["agreement"] == 1.0
assert first["mismatch"] < 1e-3


# %% [markdown]
# ## Training loop
#
# Each step's own stories are measured too, exactly and by gold, before they are learned from. They
# answer requests that the policy mostly has not seen before.


# %%
def practise(label, reward):
    """RL from the start; its answers to held-out requests, and its metrics."""
    policy = service.create_training_client_from_state(checkpoint).result()
    history = []
    with progress(label, 0, cfg.steps, ["reward", "exact", "gold", "length"]) as show:
        for step, metrics in enumerate(
            rlvr.train(policy, world.train, cfg, reward=watched(reward, rater)), 1
        ):
            history.append({"step": step, **metrics})
            show(step, metrics)
    stories_of[label] = answers_of(policy.save_weights_and_get_sampling_client().result())
    found[label] = judge_texts(judge, test, stories_of[label])
    return history


histories = {"weighted sum": practise("weighted sum", rubric_reward(judge, truth=check))}

# %% [markdown]
# ### Judged against exact
#
# Both are weighted sums, of the judge's credits and of exact ones, on the same stories. Look at the
# distance between the two: what is added to it is what the policy has learned about the judge.


# %%
def lines(history, names):
    """Several metrics of one run as curves of one; `names` maps a label to a metric."""
    return {label: [[{"step": line["step"], "value": line[key]} for line in history if key in line]]
            for label, key in names.items()}  # fmt: skip


summed = histories["weighted sum"]
curves(lines(summed, {"judged": "reward", "exact": "true_reward"}), "value",
       title="What the judge says of the stories, and what is so", ylabel="score")  # fmt: skip

# %%
curves({"weighted sum": [summed]}, "gold", title="Gold, which is in no rubric", ylabel="points")

# %% [markdown]
# ### Criterion by criterion
#
# How far the criteria of each subject are held to be met, and how far they are. Pitfalls count the
# other way round.

# %%
subjects = sorted(name.removeprefix("true/") for name in summed[0] if name.startswith("true/"))
curves(lines(summed, {name: f"paid/{name}" for name in subjects}), "value",
       title="What the judge credits", ylabel="share met")  # fmt: skip

# %%
curves(lines(summed, {name: f"true/{name}" for name in subjects}), "value",
       title="What is so", ylabel="share met")  # fmt: skip

# %% [markdown]
# The judge itself does not change while the policy learns, but what it is shown does. Agreement is
# over all criteria; false credit is over what is false, and that is where the policy can gain.

# %%
curves(lines(summed, {name.replace("_", " "): name
                      for name in ("agreement", "false_credit", "false_denial")}), "value",
       title="The judge on the policy's stories", ylabel="share of verdicts")  # fmt: skip

# %% [markdown]
# ### The remedy: one verifiable criterion
#
# Of all that a rubric asks for, something can usually be checked after all. Here it is whom the
# story is about: names can be counted. A program says it, the judge says the rest, and the sum is
# the same. Everything else of the run is as before.

# %%
print(", ".join(kind.value.format("fox") for kind in CHECKED))
remedy = rubric_reward(judge, weighted_sum, exact=exact_of(*CHECKED), truth=check)
histories["one criterion checked"] = practise("one criterion checked", remedy)
compared = {name: [history] for name, history in histories.items()}
curves(compared, "exact", title="The rubric by the exact check", ylabel="score")

# %%
curves(compared, "true/hero", title="The criterion that is checked", ylabel="share met")

# %% [markdown]
# ## Results
#
# ### Before and after
#
# On held-out requests. Judged, exact and gold; how often a story is better than the start's story
# for the same request; and what every story has: length, form, distance.

# %%
scores = {}
for name, groups in stories_of.items():
    score = scores[name] = score_texts(start, test, groups, stories_of["SFT start"], rater)
    print(f"{name:22} {found[name]}\n{'':22} gold {score.gold}  win rate {score.won.win_rate}  "
          f"KL {score.won.kl:.1f} nats  {score.length.value:.0f} tokens  "
          f"well-formed {score.well_formed:.0%}")  # fmt: skip
estimates(
    {f"{name}, {which}": bootstrap_mean(getattr(measured, which))
     for name, measured in found.items() for which in ("judged", "exact")},
    title="Rubrics of held-out requests", xlabel="weighted sum",
)  # fmt: skip

# %%
estimates(
    {name: score.gold or score.won.win_rate for name, score in scores.items()},
    title="Quality of stories for held-out requests",
    xlabel="mean gold score",
)

# %% [markdown]
# ### Failure mode: the policy learns to please the judge
#
# Where? The same sum over criteria as above, in points a story: what the judge pays for nothing. A
# subject whose number rose is one where pleasing was easier than doing. The remedy changes the pay
# of one subject, and this table is by the judge alone, so look at what is *met* there as well.

# %%
print(f"{'overpaid':14}" + "".join(f"{name:>24}" for name in found))
for about in subjects:
    row = [measured.parts.get(about, 0.0) for measured in found.values()]
    print(f"{about:14}" + "".join(f"{points:+24.3f}" for points in row))
print(f"{'together':14}" + "".join(f"{m.overpaid.mean():+24.3f}" for m in found.values()))
print(f"\n{'met, exactly':14}" + "".join(f"{name:>24}" for name in found))
for about in subjects:
    row = [measured.met.get(about, float("nan")) for measured in found.values()]
    print(f"{about:14}" + "".join(f"{share:24.0%}" for share in row))

# %% [markdown]
# And the stories themselves: those that the judge overpays most, with what it says of each
# criterion and what is so.

# %%
overpaid = found["weighted sum"].overpaid
for i in np.argsort(-overpaid)[:2]:
    text = stories_of["weighted sum"][i][0].text.strip()
    print(f"\n{test[i].question}\n  {text}")
    cases = [Case(test[i], criterion, text) for criterion in rubric(test[i])]
    for case, credit in zip(cases, settled(cases, judge(cases)[0]), strict=True):
        so = "yes" if check(case.criterion, case.item, text) else "no"
        print(f"    {case.criterion.importance.value:9} {case.criterion.text}: "
              f"judge {credit:.2f}, exact {so}")  # fmt: skip

# %% [markdown]
# What is in no rubric can only be seen with another measure. Gold is a sum of parts: did any of
# them pay for the rest?

# %%
from posttrain.tasks.gold import quality

PARTS = ("coverage", "coherence", "length", "mood", "ending", "repetition")
print(f"{'':24}" + "".join(f"{part:>12}" for part in PARTS))
for name, groups in stories_of.items():
    pairs = zip(test, groups, strict=True)
    qualities = [quality(item, rollout.text) for item, group in pairs for rollout in group]
    means = [np.mean([getattr(q, part) for q in qualities]) for part in PARTS]
    print(f"{name:24}" + "".join(f"{mean:12.2f}" for mean in means))

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison over several seeds, with the gate, the holistic verdict, and
# SFT on the best of each group by the same judge as the control at equal budget
# (`posttrain run rubric_rl --seeds 5 --record`).

# %%
import json

for name, measured in found.items():
    print(f"This run, {name}: judged {measured.judged.mean():.2f}, "
          f"exact {measured.exact.mean():.2f}, gold {scores[name].gold}")  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **What to look at.** Whether judged and exact score part, and on which subject; whether gold goes
# with the one or with the other; whether a criterion that a program checks is met more often, and
# whether the others are left alone. On real texts there is no exact score: then a sample of
# verdicts read by people, again and again while the policy learns, takes its place.

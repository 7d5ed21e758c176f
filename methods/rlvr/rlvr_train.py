# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Reinforcement learning with verifiable rewards
#
# ## Concept
#
# SFT needs somebody to write the answers. Where a program can *check* an answer, the model can
# write its own: it answers each problem $G$ times, a verifier scores each answer $r_i$, and every
# token is pushed up or down by how much better its answer did than the group,
#
# $$L = -\frac{1}{N}\sum_i \sum_t \rho_{it}\,A_i, \qquad A_i = r_i - \frac{1}{G}\sum_j r_j, \qquad
# \rho_{it} = \frac{p(y_{it} \mid \cdot)}{p_\text{sampler}(y_{it} \mid \cdot)}.$$
#
# The group's mean is the baseline, so there is no value model. A group in which all answers are
# right, or all wrong, has no contrast and teaches nothing.
#
# This lesson starts from a policy that imitates a few hundred solutions as people write them:
# aloud, in the chat format, and with people's misconceptions. They forget carries, add what they
# should multiply, take "as at the start" for "as now". On a step where such a mistake is possible
# more than half of the demonstrations make it, so imitation makes it too. Nobody tells the policy
# the right way here. It has to find it by trying.

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from pathlib import Path

import tinker
import torch

from posttrain.connect import connect
from posttrain.evals import evaluate, longest, side_by_side
from posttrain.lab.arms.rlvr import cold_start_config, rlvr_config
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.plots import before_after, curves
from posttrain.progress import progress
from posttrain.scale import pick, scale_from

scale = scale_from()
world = world_of(scale)
service = connect(quiet=True)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"{len(world.demonstrations)} demonstrations, {len(world.train)} problems without any")

# %% [markdown]
# ### The verifier
#
# It reads the last "The answer is N." and compares. What it cannot read is wrong: a verifier that
# gives the benefit of the doubt will be exploited.

# %%
problem = max(world.train[:50], key=lambda p: len(p.solution))
print(problem.question)
for said in (problem.solution, "The answer is 1.", "about a dozen", ""):
    grade = problem.grade(said)
    print(f"  correct {grade.correct!s:5}  readable {grade.parsed!s:5}  {said!r}")

# %% [markdown]
# ### Advantages, on four literal rewards
#
# One right answer among four, and a group without contrast.

# %% tags=["inline"]
from posttrain.advantages import centred, standardised, without_contrast

# %%
rewards_P_G = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
print("centred      ", centred(rewards_P_G).tolist())
print("standardised ", [[round(a, 3) for a in row] for row in standardised(rewards_P_G).tolist()])
print("no contrast  ", without_contrast(rewards_P_G))

# %% [markdown]
# ### From rollouts to datums, and the loop

# %% tags=["inline"]
from posttrain.datums import policy_datum

# %% tags=["inline"]
from posttrain.methods.rlvr import (
    Batch,
    Config,
    each,
    mismatch,
    right_answer,
    rlvr_datums,
    rollout_metrics,
    sample_batch,
    train,
)

# %% [markdown]
# ### Before: the cold start
#
# A short SFT on the demonstrations. It teaches the chat format and to reason aloud, and no more
# than that: its teachers are often wrong.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("rlvr-lesson-start", overwrite=True).result().path
reference = student.save_weights_and_get_sampling_client().result()

# %%
test = world.test[: pick(scale, smoke=8, laptop=120, full=None)]
k = pick(scale, smoke=2, laptop=16, full=16)
before = evaluate(reference, test, k, max_tokens=world.max_tokens)
print("SFT start:", before)

# %% [markdown]
# ### A check before training
#
# On fresh samples the ratio $\rho$ is 1 for every token, because trainer and sampler are the same
# policy. `mismatch` is the largest difference of their log-probabilities, and each step reports it.
# The loss itself is useless as a signal: with centred advantages and $\rho = 1$ its value is the
# sum of advantages weighed by length, whatever the policy does.

# %%
cfg = rlvr_config(world, seed=0)  # its learning rate did best in sweep.json
policy = service.create_training_client_from_state(checkpoint).result()
first = next(iter(train(policy, world.train, replace(cfg, learning_rate=0.0), reference=reference)))
print({name: round(value, 6) for name, value in first.items()})
assert first["mismatch"] < 1e-3
assert abs(first["kl"]) < 1e-3


# %% [markdown]
# ## Training loop


# %%
def practise(label, cfg, **variant):
    """Train from the common start; return the metrics and the policy."""
    policy = service.create_training_client_from_state(checkpoint).result()
    history = []
    with progress(label, 0, cfg.steps, ["reward", "no_contrast", "entropy", "length"]) as show:
        steps = train(policy, world.train, cfg, reference=reference, **variant)
        for step, metrics in enumerate(steps, 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
    return history, policy.save_weights_and_get_sampling_client().result()


history, trained = practise("RLVR", cfg)

# %% [markdown]
# ## Results
#
# ### After

# %%
after = evaluate(trained, test, k, max_tokens=world.max_tokens)
print("SFT start:", before)
print("RLVR:     ", after)
before_after({"SFT start": before, "RLVR": after}, title="Held-out problems, 1 to 4 steps")

# %% [markdown]
# Greedy decoding improves as well, so this is more than a lower temperature: for some kinds of
# step the most probable answer was wrong before, and is right now.

# %%
for row in side_by_side(
    {"SFT start": reference, "RLVR": trained},
    longest(test[:100], 3),
    max_tokens=world.max_tokens,
):
    print(row, "\n")

# %% [markdown]
# ### Reading the dashboard
#
# Reward rises. A third of the groups have no contrast and teach nothing. Entropy often falls in
# RL; here it does not, because there is little to lose: the start imitates its people so closely
# that it is nearly certain of each token. Practice loosens it first, then it settles on other
# answers. The distance from the start jumps to about a nat per answer within ten steps, then
# wanders.

# %%
curves({"RLVR": [history]}, "reward", title="Reward", ylabel="share of right answers")

# %%
curves({"RLVR": [history]}, "entropy", title="Entropy", ylabel="nats per token")

# %%
curves({"RLVR": [history]}, "no_contrast", title="Groups without contrast", ylabel="share")

# %%
curves({"RLVR": [history]}, "kl", title="KL(policy || start)", ylabel="nats per answer")

# %%
curves({"RLVR": [history]}, "length", title="Length of an answer", ylabel="tokens")

# %% [markdown]
# ### Another reward, another loss: pass another function
#
# The step verifier pays for every correct equation. The same loop takes it as an argument, and
# `ppo` clips the ratio when a batch is used for two updates.


# %%
def right_steps(problem, said):
    """Share of the solution's equations that the answer contains, in [0, 1]."""
    return problem.grade_steps(said)


short = replace(cfg, steps=pick(scale, smoke=2, laptop=12, full=40))
variants = {"outcome, importance sampling": [history[: short.steps]]}
if hasattr(world.train[0], "grade_steps"):
    variants["step reward"] = [practise("step reward", short, reward=each(right_steps))[0]]
variants["ppo, 2 updates a batch"] = [practise("ppo", replace(short, reuse=2), loss="ppo")[0]]
curves(variants, "correct", title="Right final answers while practising", ylabel="share")

# %% [markdown]
# ### Failure mode: a step size that is too large
#
# The same loop with ten times the learning rate. `reward` falls, and `unparsed` and `kl` say why
# at once; the loss would not.

# %%
wild_cfg = replace(short, learning_rate=10 * cfg.learning_rate)
wild, _ = practise("10x learning rate", wild_cfg)
curves(
    {"chosen rate": [history[: short.steps]], "10x": [wild]}, "reward",
    title="Reward at two learning rates", ylabel="share of right answers",
)  # fmt: skip

# %% [markdown]
# ## Key observations
#
# The control at equal budget is rejection-sampling fine-tuning: draw as many answers from the
# start, keep the right ones, imitate them for as many steps. `results.json` holds that comparison
# over several seeds (`posttrain run rlvr --seeds 5 --record`).

# %%
import json

gain = after.pass_at_1.value - before.pass_at_1.value
print(f"This run: pass@1 {before.pass_at_1.value:.3f} -> {after.pass_at_1.value:.3f} ({gain:+.3f})")
print(f"          greedy {before.greedy.value:.3f} -> {after.greedy.value:.3f}")
print(f"          entropy {history[0]['entropy']:.3f} -> {history[-1]['entropy']:.3f} nats a token")
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use RLVR when answers can be checked by a program and the policy already
# succeeds sometimes: without a right answer in the group there is nothing to reinforce. Start it
# from a policy that knows the format, and watch reward, entropy and the share of groups without
# contrast, not the loss. Compare it with rejection-sampling fine-tuning before you pay for it.

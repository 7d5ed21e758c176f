# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Off-policy distillation
#
# ## Concept
#
# A teacher answers the questions and the student imitates its answers. That is SFT with another
# author ([Kim and Rush 2016](https://arxiv.org/abs/1606.07947)), and this author never tires,
# can be filtered, and can say more than what it wrote: at every token it has a whole distribution
# $q$ over what could have come next. *Hard* targets are the tokens written. *Soft* targets are the
# probabilities ([Hinton et al. 2015](https://arxiv.org/abs/1503.02531)). In the mean both make the
# same thing small,
#
# $$L = \frac{1}{T} \sum_t \mathrm{KL}\big(q(\cdot \mid x, y_{<t}) \,\|\, p(\cdot \mid x, y_{<t})
# \big), \qquad y \sim q(\cdot \mid x),$$
#
# with $p$ the student; soft targets without the noise of a sample, at the price of scoring.
#
# Two choices are made here, and each could be made otherwise: *who writes the text*, and *which
# divergence* of the two is made small on it. That makes four methods.
#
# | text by | KL(q, p): go wherever the teacher goes | KL(p, q): go only where the teacher goes |
# | --- | --- | --- |
# | teacher | **off-policy distillation** | off-policy reverse |
# | student | as DAgger | [on-policy distillation](on_policy.ipynb) |
#
# On the teacher's texts the student never meets the states that its own mistakes lead to. When it
# writes for itself it does, and nobody has told it how to go on from there. This is called exposure
# bias, and the lesson measures it ([Ross et al. 2011](https://arxiv.org/abs/1011.0686)).

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from posttrain.connect import connect
from posttrain.evals import longest, side_by_side
from posttrain.lab.arms.distillation import OFF_POLICY, SOFT, budget_of, distillation_config, within
from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.lengths import by_length, held_out, scores_of
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.methods.distillation import (
    Questions,
    students_texts,
    teachers_texts,
    train,
    until_spent,
)
from posttrain.plots import before_after, curves
from posttrain.progress import progress
from posttrain.scale import pick, scale_from
from posttrain.scoring import logprobs_of, top_tokens

scale = scale_from()
world = world_of(scale)
assert world.teacher is not None
service = connect(quiet=True)
teacher = service.create_sampling_client(base_model=world.teacher).result()
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"teacher {world.teacher}; {len(world.train)} problems that nobody has solved")

# %% [markdown]
# ### Before: the cold start, and the teacher
#
# A short SFT on solutions as people write them, with their misconceptions. It teaches the chat
# format. The held-out problems come in two lengths: as practised, and longer than any of those.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("off-policy-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()
tokenizer = start.get_tokenizer()

# %%
problems = held_out(world, *pick(scale, smoke=(4, 4), laptop=(70, 50), full=(None, None)))
k = pick(scale, smoke=2, laptop=4, full=16)
scores = {"SFT start": scores_of(start, problems, k, world),
          "teacher": scores_of(teacher, problems, k, world)}  # fmt: skip
for name, found in scores.items():
    for length, score in found.items():
        print(f"{name}, {length} problems: {score}")

# %% [markdown]
# ### What the teacher says, beside the people
#
# One demonstration by a person, and one text of the teacher with the three likeliest tokens at its
# least certain places.

# %%
cfg = distillation_config(world, seed=0, rate=3e-3)
questions = Questions(world.train)
print(f"a person: {world.demonstrations[0].question}\n  {world.demonstrations[0].answer}\n")
text = teachers_texts(start, teacher, questions, replace(cfg, prompts=1, group_size=1), step=0)[0]
print(f"the teacher: {tokenizer.decode(text.prompt)}\n  {text.text}\n")
(best,) = top_tokens(teacher, [text.for_teacher], 3)
for place in best.logprobs[:, 0].argsort()[:4].tolist():
    could = [f"{tokenizer.decode([token])!r} {logprob.exp():.2f}"
             for token, logprob in zip(best.tokens[place].tolist(), best.logprobs[place],
                                       strict=True)]  # fmt: skip
    before = tokenizer.decode(text.tokens[:place])
    print(f"  ...{before[-24:]!r} then {', '.join(could)}")

# %% [markdown]
# ### The loss, on literal probabilities
#
# Three tokens could come next. A hard target is one of them, drawn by the teacher. In the mean over
# the three draws its gradient is that of KL(q, p), which is what a soft target has at once.

# %% tags=["inline"]
from posttrain.divergences import kl_q_p, renormalised, with_tail

# %%
p = torch.tensor([0.70, 0.20, 0.10], dtype=torch.float64).log()  # the student
q = torch.tensor([0.15, 0.80, 0.05], dtype=torch.float64).log()  # the teacher
logits = p.clone().requires_grad_()
(soft,) = torch.autograd.grad(kl_q_p(logits.log_softmax(-1), q), logits)
hard = torch.stack([torch.autograd.grad(-logits.log_softmax(-1)[v], logits)[0] for v in range(3)])
print("one hard target each:", [[round(x, 2) for x in row] for row in hard.tolist()])
print("their mean:          ", [round(x, 3) for x in (q.exp() @ hard).tolist()])
print("soft target:         ", [round(x, 3) for x in soft.tolist()])
assert torch.allclose(q.exp() @ hard, soft)

# %% [markdown]
# A server returns only the likeliest tokens. Made to add up to 1 they are still a proper target: it
# says that the teacher would never write anything else.

# %%
print("the likeliest two:", [round(x, 3) for x in renormalised(q[:2]).exp().tolist()])

# %% [markdown]
# ### The objectives
#
# The loop is that of [on-policy distillation](on_policy.ipynb), which shows it: it takes as
# arguments who writes and what is matched.

# %% tags=["inline"]
from posttrain.methods.objectives import sampled_kl_q_p, soft_kl_q_p

# %% [markdown]
# ### A check before training
#
# The divergence of the first batch, once more by hand. For hard targets it is the mean of
# $\log q(y_t) - \log p(y_t)$ over the tokens that the teacher wrote.

# %%
policy = service.create_training_client_from_state(checkpoint).result()
still = replace(cfg, learning_rate=0.0)
loop = train(policy, teacher, questions, still, texts=teachers_texts, objective=sampled_kl_q_p)
first = next(iter(loop))
texts = teachers_texts(start, teacher, questions, cfg, step=0)
own = logprobs_of(
    start, [t.for_student for t in texts], [torch.tensor(t.tokens)[:, None] for t in texts]
)
gaps = [torch.tensor(t.logprobs) - p_T_1[:, 0] for t, p_T_1 in zip(texts, own, strict=True)]
by_hand = torch.cat(gaps).mean().item()
print(f"loop {first['divergence']:.5f}, by hand {by_hand:.5f} nats a token")
assert abs(first["divergence"] - by_hand) < 1e-3

# %% [markdown]
# ## Training loop
#
# The teacher's work is what costs: it is the large model. So every run ends when the teacher has
# computed the same number of tokens, written or scored. A teacher that writes and scores pays for
# the prompt and for every token twice, so soft targets see fewer texts than hard ones.

# %%
cfg = replace(cfg, steps=pick(scale, smoke=2, laptop=10, full=100))
budget = budget_of(cfg, world, tokenizer)
print(f"budget: {budget:,} tokens of the teacher")
histories: dict[str, list[dict[str, float]]] = {}
after = {"SFT start": start, "teacher": teacher}


def practise(label, steps, total):
    """Take all steps of a run from the common start; keep metrics and policy."""
    policy = service.create_training_client_from_state(checkpoint).result()
    histories[label] = []
    with progress(label, 0, total, ["divergence", "loss", "length"]) as show:
        for step, metrics in enumerate(steps(policy), 1):
            histories[label].append({"step": step, **metrics})
            show(min(step, total), metrics)
    after[label] = policy.save_weights_and_get_sampling_client().result()
    scores[label] = scores_of(after[label], problems, k, world)


def distil(objective, texts=teachers_texts):
    """The steps of distillation as long as the budget lasts."""
    many = replace(cfg, steps=20 * cfg.steps)
    return lambda policy: until_spent(
        train(policy, teacher, questions, many, texts=texts, objective=objective), budget
    )


practise("hard", distil(sampled_kl_q_p), within(cfg, world, tokenizer, OFF_POLICY))
practise("soft", distil(soft_kl_q_p), within(cfg, world, tokenizer, SOFT))
hard_steps = len(histories["hard"])

# %% [markdown]
# ### The control: people instead of the teacher
#
# As many steps and as many texts as with hard targets, on the demonstrations that there are.

# %%
people = sft.Config(
    steps=hard_steps, batch_size=cfg.prompts * cfg.group_size, learning_rate=1e-3, seed=0
)
practise("more SFT", lambda policy: sft.train(policy, world.demonstrations, people), hard_steps)

# %% [markdown]
# ## Results
#
# ### After

# %%
shown = ["SFT start", "more SFT", "hard", "soft", "teacher"]
before_after({name: scores[name]["usual"] for name in shown},
             title="Held-out problems, as long as practised")  # fmt: skip

# %%
last = [*problems][-1]  # GSM8K has no longer ones
before_after({name: scores[name][last] for name in shown}, title=f"Held-out problems, {last}")

# %%
for row in side_by_side(
    {"SFT start": start, "hard": after["hard"]}, longest(world.test[:100], 3),
    max_tokens=world.max_tokens,
):  # fmt: skip
    print(row, "\n")

# %% [markdown]
# ### Reading the dashboard
#
# Both lines estimate KL(q, p) on the teacher's texts. Soft targets are cut to 20 tokens, so that
# line is the divergence from a teacher who never says anything else.

# %%
curves({name: [histories[name]] for name in ("hard", "soft")}, "divergence",
       title="KL(q, p) on the teacher's texts", ylabel="nats a token")  # fmt: skip

# %% [markdown]
# ### Failure mode: exposure bias
#
# The same divergence, measured at each place of a text, on new texts of the teacher and on the
# student's own. On its own texts the student goes where the teacher would not have gone, and there
# it was never taught: training takes less of the distance away.

# %%
probe = Questions(list(problems[last]))
wide = replace(cfg, prompts=len(probe.items), group_size=2)


def apart(sampler, texts):
    """KL(q, p) at each place of each text, with all but 20 tokens as one outcome."""
    tops = top_tokens(teacher, [text.for_teacher for text in texts], 20)
    own = logprobs_of(sampler, [text.for_student for text in texts], [top.tokens for top in tops])
    return [kl_q_p(with_tail(p), with_tail(top.logprobs)) for p, top in zip(own, tops, strict=True)]


def by_place(rows, bins=8):
    """Mean divergence over eighths of the texts."""
    parts = [np.array_split(row.numpy(), bins) for row in rows if len(row) >= bins]
    means = [np.concatenate([row[i] for row in parts]).mean() for i in range(bins)]
    return [{"part": (i + 0.5) / bins, "kl": float(mean)} for i, mean in enumerate(means)]


# %%
lines, means = {}, {}
for label in ("SFT start", "hard"):
    sampler = after[label]
    theirs = teachers_texts(sampler, teacher, probe, wide, step=0)
    mine = students_texts(sampler, teacher, probe, wide, step=0)
    for whose, texts in (("teacher's texts", theirs), ("own texts", mine)):
        rows = apart(sampler, texts)
        lines[f"{label}, {whose}"] = [by_place(rows)]
        means[label, whose] = torch.cat(rows).mean().item()
        print(f"{label}, {whose}: KL(q, p) {means[label, whose]:.3f} nats a token")
for whose in ("teacher's texts", "own texts"):
    left = means["hard", whose] / means["SFT start", whose]
    print(f"{whose}: {1 - left:.0%} of the distance is gone")
curves(lines, "kl", x="part", title="How far from the teacher, along a text",
       xlabel="share of the text that is written", ylabel="nats a token")  # fmt: skip

# %% [markdown]
# Where mistakes add up, long solutions suffer first. Problems sorted by the length of theirs:

# %%
groups = pick(scale, smoke=2, laptop=6, full=6)
lengths = {name: [by_length(problems, scores[name], tokenizer, groups)]
           for name in ("SFT start", "hard", "teacher")}  # fmt: skip
curves(lengths, "pass@1", x="tokens", title="Right answers, by length of the solution",
       xlabel="tokens of the worked solution", ylabel="share right")  # fmt: skip

# %% [markdown]
# ### Texts that are kept
#
# Usually the teacher's texts are written once and kept. Then a verifier can leave out those that
# are wrong. They are paid for all the same, and the right ones are read until there are as many
# steps.

# %% tags=["inline"]
from posttrain.methods.distillation import Collected, collect, given


# %%
def right(item, text):
    """Whether the text is kept. At smoke scale there would be none."""
    return item.grade(text.text).correct or scale == "smoke"


def read(label, found):
    """Train on what was collected, for as many steps as with new texts."""
    times = hard_steps * cfg.prompts * cfg.group_size / len(found.texts)
    print(f"{len(found.texts)} of {found.written} texts are right; each is read {times:.1f} times")
    again, texts = replace(cfg, steps=hard_steps), given(found.texts)
    practise(
        label,
        lambda policy: train(
            policy, teacher, questions, again, texts=texts, objective=sampled_kl_q_p
        ),
        hard_steps,
    )
    print(f"{label}: {scores[label]['usual']}")


read("filtered", collect(teacher, questions, cfg, keep=right, budget=budget))

# %% [markdown]
# ### Few texts, read often
#
# The same with the right texts on 16 problems. What is learned by heart looks like progress to the
# loss.

# %%
read("few", collect(teacher, Questions(world.train[:16]), cfg, keep=right))
curves({name: [histories[name]] for name in ("hard", "filtered", "few")}, "divergence",
       title="KL(q, p) on what is trained on", ylabel="nats a token")  # fmt: skip

# %%
before_after({name: scores[name]["usual"] for name in ("SFT start", "hard", "filtered", "few")},
             title="Held-out problems, as long as practised")  # fmt: skip

# %% [markdown]
# ## Key observations
#
# `results.json` holds the whole table over several seeds (`posttrain run distillation --seeds 5
# --record`).

# %%
import json

for label in shown:
    told = scores[label]
    print(f"This run, {label}: " + ", ".join(f"{length} {score.pass_at_1.value:.3f}"
                                             for length, score in told.items()))  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Try off-policy distillation first when a better model exists and questions
# without answers are plenty: hard targets need nothing but its texts. Keep only the right ones if
# you can tell, and spend what the teacher may cost on many questions rather than on a few that are
# read often. Where the student goes wrong on its own texts though not on the teacher's, go on with
# [on-policy distillation](on_policy.ipynb).

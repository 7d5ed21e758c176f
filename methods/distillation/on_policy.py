# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # On-policy distillation
#
# ## Concept
#
# A better model is at hand, the *teacher*. It can do two things for a student: write texts, or say
# of any text how probable each of its tokens is. Distillation is to make the student's
# distribution over the next token, $p$, like the teacher's, $q$. Two choices are left:
#
# | text by | $\mathrm{KL}(q\,\|\,p)$: go where it goes | $\mathrm{KL}(p\,\|\,q)$: go only there |
# | --- | --- | --- |
# | teacher | off-policy distillation | the fourth cell |
# | student | as DAgger | **on-policy distillation** |
#
# On the teacher's texts the student learns what to do where the teacher would be. But it writes
# its own texts later, and its first mistake leads to a place where the teacher never was. On its
# own texts it learns what to do exactly there, and the teacher does not write a single token.
#
# With $y$ sampled from the student, the divergence that on-policy distillation makes small is
#
# $$\frac{1}{T}\sum_t \mathrm{KL}\big(p(\cdot\mid x,y_{<t}) \,\|\, q(\cdot\mid x,y_{<t})\big),
# \qquad \text{with the advantage}\quad A_t = \log q(y_t\mid\cdot) - \log p(y_t\mid\cdot)$$
#
# for each sampled token: a policy gradient with a reward at *every* token, where RLVR has one for
# a whole answer ([MiniLLM](https://arxiv.org/abs/2306.08543),
# [GKD](https://arxiv.org/abs/2306.13649), and "On-Policy Distillation", Thinking Machines 2025).
#
# The student of this lesson imitates people who err. The teacher is twice its size, has read more,
# and rarely errs. [off_policy.ipynb](off_policy.ipynb) is the same lesson with the teacher's texts.

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import tinker
import torch

from posttrain.connect import connect
from posttrain.divergences import kl_p_q, renormalised
from posttrain.evals import longest, side_by_side
from posttrain.lab.arms.distillation import (
    DAGGER,
    OFF_POLICY,
    ON_POLICY,
    REVERSE,
    TOP_K,
    budget_of,
    cold_start_config,
    distillation_config,
    teacher_of,
    within,
)
from posttrain.lab.lengths import by_length, held_out, scores_of
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.methods.distillation import Questions, check_teacher, students_texts
from posttrain.plots import before_after, curves, token_mask
from posttrain.progress import progress
from posttrain.scale import pick, scale_from

scale = scale_from()
world = world_of(scale)
service = connect(quiet=True)
teacher = teacher_of(service, world)
tokenizer = teacher.get_tokenizer()
questions = Questions(world.train)
print(f"{scale} scale, task {world.task}: student {world.model}, teacher {world.teacher}")

# %% [markdown]
# ### The advantage, on three literal tokens
#
# Student and teacher over a vocabulary of three. The mean of $\log p - \log q$ over the student's
# own samples is $\mathrm{KL}(p\,\|\,q)$, whatever $q$ does where the student never goes.

# %% tags=["inline"]
from posttrain.divergences import k1

# %%
p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.3, 0.6]).log()
drawn = torch.multinomial(p.exp(), 20_000, replacement=True, generator=torch.manual_seed(0))
print("advantages    ", [round(-x, 3) for x in k1(p, q).tolist()])
print("KL(p || q)    ", round(kl_p_q(p, q).item(), 4))
print("from samples  ", round(k1(p[drawn], q[drawn]).mean().item(), 4))

# %% [markdown]
# ### The objective
#
# An objective turns texts into datums. This one asks the teacher once per text, with
# `compute_logprobs`, and gives the advantages to the same loss that RLVR uses.

# %% tags=["inline"]
from posttrain.methods.objectives import Batch, Text, sampled_kl_p_q

# %% [markdown]
# ### Before: the cold start, and the teacher
#
# The student knows the chat format and people's solutions, misconceptions included. Both models
# must read the same tokens, and be asked in the same layout: a teacher that is asked in another
# way than it knows is a bad teacher, and nothing would say so.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("on-policy-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()
check_teacher(student, teacher, questions)

# %%
problems = held_out(
    world,
    usual=pick(scale, smoke=8, laptop=150, full=None),
    longer=pick(scale, smoke=4, laptop=60, full=None),
)
measure = partial(
    scores_of, problems=problems, k=pick(scale, smoke=2, laptop=8, full=8), world=world
)
scores = {"SFT start": measure(start), "teacher": measure(teacher)}
for name, found in scores.items():
    print(f"{name}: {found['usual']}")

# %% [markdown]
# ### What the teacher says of a student's answer
#
# Every token has its own advantage. Most are near zero: there both models would have written the
# same. It is the token at which an answer goes wrong that is pushed down (orange), and the teacher
# found it without a verifier and without knowing the right answer.

# %%
cfg = distillation_config(world, seed=0, rate=1e-3)
texts = students_texts(start, teacher, questions, cfg, 0)
asked = {tuple(questions.layout(tokenizer, item.question)): item for item in world.train}
wrong = next(
    (t for t in texts if t.finished and not asked[tuple(t.prompt)].grade(t.text).correct), texts[0]
)
scored = sampled_kl_p_q(start, teacher, [wrong], 0, 0).data[0]
advantages = np.array(scored.loss_fn_inputs["advantages"].data)[-len(wrong.tokens) :]
token_mask(
    [str(tokenizer.decode([token])) for token in wrong.tokens],
    (advantages * len(wrong.tokens)).clip(-4, 4).tolist(),
    title="log q - log p of a wrong answer's tokens, cut at 4 nats",
)

# %% [markdown]
# ### The loop

# %% tags=["inline"]
from posttrain.methods.distillation import Config, submit, text_metrics, train, until_spent

# %% [markdown]
# ### A check before training
#
# A model has nothing to learn from itself: as its own teacher all advantages are zero.

# %%
policy = service.create_training_client_from_state(checkpoint).result()
own = next(iter(train(policy, start, questions, replace(cfg, learning_rate=0.0, steps=1))))
print(f"KL(p || p) {own['divergence']:+.6f} nats a token")
assert abs(own["divergence"]) < 1e-3


# %% [markdown]
# ## Training loop


# %%
budget = budget_of(cfg, world, tokenizer)  # teacher tokens
histories: dict[str, list[dict[str, float]]] = {}
policies: dict[str, tinker.SamplingClient] = {}


def distil(label, cell, rate, origin=checkpoint, share=1.0):
    """Train from a checkpoint until the teacher has spent a share of the budget."""
    policy = service.create_training_client_from_state(origin).result()
    steps = within(cfg, world, tokenizer, cell)
    own = replace(cfg, learning_rate=rate, steps=2 * steps)
    loop = train(policy, teacher, questions, own, texts=cell.texts, objective=cell.objective)
    histories[label], spent = [], 0.0
    with progress(label, 0, round(share * steps), ["divergence", "entropy", "length"]) as show:
        for step, metrics in enumerate(until_spent(loop, share * budget), 1):
            spent += metrics["teacher_tokens"]
            histories[label].append({"step": step, **metrics})
            show(step, metrics)
    policies[label] = policy.save_weights_and_get_sampling_client().result()
    scores[label] = measure(policies[label])
    print(f"{label}: {step} steps, {spent:,.0f} teacher tokens; {scores[label]['usual']}")


distil("on-policy", ON_POLICY, rate=1e-3)

# %% [markdown]
# ### The control: off-policy, at equal teacher tokens
#
# The teacher writes, the student imitates. A token that the teacher writes costs about as much as
# one that it scores, and here it does not have to score any. So the control may take more steps.

# %%
distil("off-policy", OFF_POLICY, rate=3e-3)

# %% [markdown]
# ## Results
#
# ### After

# %%
for name, found in scores.items():
    print(f"{name}: {found['usual']}")
usual = {name: found["usual"] for name, found in scores.items()}
before_after(usual, title="Held-out problems, 1 to 4 steps")

# %%
for row in side_by_side(
    {"SFT start": start, "on-policy": policies["on-policy"], "teacher": teacher},
    longest(problems["usual"][:100], 2),
    max_tokens=world.max_tokens,
):
    print(row, "\n")


# %% [markdown]
# ### Accuracy against the length of the answer
#
# A student that learned on somebody else's texts is expected to fall behind with length, because
# its own mistakes lead it away from what it knows (*exposure bias*). Problems by the length of
# their worked solution, in five groups of equal size, the longer ones of 5 and 6 steps included.

# %%
length = partial(by_length, problems, tokenizer=tokenizer)
curves(
    {name: [length(found)] for name, found in scores.items()}, "pass@1", x="tokens",
    title="Accuracy against length", ylabel="pass@1",
)  # fmt: skip

# %% [markdown]
# ### Reading the dashboard
#
# The divergence is measured on the texts that are trained on: on the student's own for one arm, on
# the teacher's for the other, so the two curves are not about the same thing. The entropy is that
# of whoever writes.

# %%
curves({"on-policy": [histories["on-policy"]]}, "divergence",
       title="KL(p || q) on the student's texts", ylabel="nats per token")  # fmt: skip

# %%
curves({"on-policy": [histories["on-policy"]]}, "entropy",
       title="Entropy of the student", ylabel="nats per token")  # fmt: skip

# %% [markdown]
# ### The whole table
#
# The two cells that are left, for half of the teacher tokens, so that there is time for them. KL
# is estimated with one token at each place in all four. Whoever follows the teacher everywhere,
# $\mathrm{KL}(q\,\|\,p)$, keeps more entropy than who only avoids what the teacher avoids.

# %%
distil("as DAgger", DAGGER, rate=3e-3, share=0.5)
distil("fourth cell", REVERSE, rate=1e-3, share=0.5)

# %% [markdown]
# ### Another estimate: pass another function
#
# One sampled token at each place is a noisy estimate of a divergence. The student's $K$ likeliest
# tokens, with all others as one outcome, give nearly the whole of it, for a custom loss and one
# more forward pass. A divergence between the two directions is another argument: with `jsd` and the
# teacher's tokens (`on_teachers_top`) this is GKD.

# %%
distil("top 20", TOP_K, rate=1e-3, share=0.5)
curves(
    {"one token": [histories["on-policy"][: len(histories["top 20"])]],
     "top 20": [histories["top 20"]]},
    "divergence", title="KL(p || q) on the student's texts", ylabel="nats per token",
)  # fmt: skip

# %% [markdown]
# A cut support is a trap, though. Renormalised over the top tokens, a student that spends half of
# its probability elsewhere looks perfect:

# %%
p, q = torch.tensor([0.3, 0.2, 0.5]).log(), torch.tensor([0.6, 0.4, 1e-9]).log()
cut = kl_p_q(renormalised(p[:2]), renormalised(q[:2])).item()
print(f"KL(p || q) {kl_p_q(p, q).item():.3f}, on two tokens, renormalised: {cut:.3f}")

# %% [markdown]
# ### Failure mode: a student that is not there yet
#
# The teacher can only judge what the student writes. Without the cold start the student answers in
# a form that it never learned, its texts are nothing that the teacher would write, and being told
# how improbable they are does not show the way. Learning from the teacher's texts starts from
# anywhere.

# %%
raw = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
bare = raw.save_state("on-policy-lesson-bare", overwrite=True).result().path
distil("bare, on-policy", ON_POLICY, rate=1e-3, origin=bare, share=0.5)
distil("bare, off-policy", OFF_POLICY, rate=3e-3, origin=bare, share=0.5)

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison of all cells at equal teacher tokens, over several seeds
# (`posttrain run distillation --seeds 5 --record`).

# %%
import json

before, after = scores["SFT start"]["usual"], scores["on-policy"]["usual"]
print(f"This run: pass@1 {before.pass_at_1.value:.3f} -> {after.pass_at_1.value:.3f}, "
      f"off-policy {scores['off-policy']['usual'].pass_at_1.value:.3f}, "
      f"teacher {scores['teacher']['usual'].pass_at_1.value:.3f}")  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

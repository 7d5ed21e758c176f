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
# A better model, the *teacher*, writes texts, and the student imitates them. That is SFT with a
# machine in the place of people, and it is how most small reasoning models are made. What makes it
# more than SFT: there is no end of texts, they can be checked and filtered, and the teacher can
# tell at each token not only what it wrote but *how probable everything else was*.
#
# Sequence-level distillation takes the text alone as target
# ([Kim and Rush 2016](https://arxiv.org/abs/1606.07947)):
#
# $$L_\text{hard} = -\frac{1}{T}\sum_t \log p(y_t \mid x, y_{<t}), \qquad y \sim q(\cdot\mid x).$$
#
# Soft targets take the teacher's distribution at each place of that text
# ([Hinton et al. 2015](https://arxiv.org/abs/1503.02531)):
#
# $$L_\text{soft} = -\frac{1}{T}\sum_t \sum_v q(v \mid x, y_{<t}) \log p(v \mid x, y_{<t}).$$
#
# Both have the same mean, $\mathrm{KL}(q\,\|\,p)$ and a constant. The second has less noise, and
# needs the teacher to score what it wrote.
#
# | text by | $\mathrm{KL}(q\,\|\,p)$: go where it goes | $\mathrm{KL}(p\,\|\,q)$: go only there |
# | --- | --- | --- |
# | teacher | **off-policy distillation** | the fourth cell |
# | student | as DAgger | on-policy distillation |
#
# [on_policy.ipynb](on_policy.ipynb) is the same lesson with the student's own texts.

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
from posttrain.divergences import kl_q_p, with_tail
from posttrain.evals import longest, side_by_side
from posttrain.lab.arms.distillation import (
    budget_of,
    cold_start_config,
    distillation_config,
    teacher_of,
)
from posttrain.lab.lengths import by_length, held_out, scores_of
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.methods.distillation import (
    Questions,
    check_teacher,
    given,
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
service = connect(quiet=True)
teacher = teacher_of(service, world)
tokenizer = teacher.get_tokenizer()
questions = Questions(world.train)
print(f"{scale} scale, task {world.task}: student {world.model}, teacher {world.teacher}")

# %% [markdown]
# ### Hard and soft targets, on three literal tokens
#
# The gradient of the student's logits is $p - \text{target}$. One hard target is mostly wrong and
# right in the mean; the soft one is right at once. Cut to the two likeliest tokens and
# renormalised, it says that the third never comes.

# %%
q = torch.tensor([0.6, 0.3, 0.1]).log()
logits = torch.zeros(3, requires_grad=True)
drawn = torch.multinomial(q.exp(), 2000, replacement=True, generator=torch.manual_seed(0))
targets = {
    "first hard targets": torch.nn.functional.one_hot(drawn[:1], 3).float().mean(0),
    "2000 hard targets": torch.nn.functional.one_hot(drawn, 3).float().mean(0),
    "soft target": q.exp(),
    "soft, two likeliest": torch.tensor([0.6, 0.3, 0.0]) / 0.9,
}
for name, target in targets.items():
    loss = -(target * logits.log_softmax(-1)).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    print(f"{name:20} gradient {[round(x, 3) for x in slope.tolist()]}")
print(f"KL(q || p) {kl_q_p(logits.log_softmax(-1), q).item():.4f} at a uniform student")

# %% [markdown]
# ### The objectives
#
# An objective turns texts into datums. Both losses below are Tinker's `cross_entropy`: with one
# target at each place, or with $K$ of them and their weights.

# %% tags=["inline"]
from posttrain.methods.objectives import Batch, Text, sampled_kl_q_p, soft_kl_q_p, teachers_top

# %% [markdown]
# ### Before: the cold start, and the teacher
#
# The student knows the chat format and people's solutions, misconceptions included. The teacher is
# twice its size, has read more, and rarely errs. Both must read the same tokens.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("off-policy-lesson-start", overwrite=True).result().path
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
# ### What the teacher writes
#
# A few texts to each of many questions. Of a teacher that errs some of its texts are wrong; where
# a program can check them, they can be left out. They have been paid for all the same.

# %% tags=["inline"]
from posttrain.methods.distillation import Collected, collect

# %%
cfg = distillation_config(world, seed=0, rate=3e-3)
budget, asked = budget_of(cfg, world, tokenizer), Questions(world.train)
every = collect(teacher, asked, cfg, budget=budget)
cfg = replace(cfg, steps=-(-every.written // (cfg.prompts * cfg.group_size)))
by_prompt = {tuple(asked.layout(tokenizer, item.question)): item for item in world.train}
right = [t for t in every.texts if by_prompt[tuple(t.prompt)].grade(t.text).correct]
print(f"{every.written} texts of {every.sampled_tokens:,} tokens; {len(right)} are right")
print(tokenizer.decode(every.texts[0].prompt), every.texts[0].text)

# %% [markdown]
# ### A check before training
#
# The loss of hard targets, less what the teacher gave its own tokens, estimates
# $\mathrm{KL}(q\,\|\,p)$, and so does that of soft targets, on the same texts. A model is no
# distance from itself.

# %%
still = replace(cfg, steps=1, learning_rate=0.0)
for name, model, objective in (
    ("hard", teacher, sampled_kl_q_p),
    ("soft", teacher, partial(soft_kl_q_p, k=20)),
    ("soft, of itself", start, partial(soft_kl_q_p, k=20)),
):
    policy = service.create_training_client_from_state(checkpoint).result()
    texts = given(every.texts) if model is teacher else students_texts
    first = next(iter(train(policy, model, asked, still, texts=texts, objective=objective)))
    print(f"{name}: {first['divergence']:.4f} nats a token")
assert abs(first["divergence"]) < 0.02  # what the 20 likeliest tokens leave out


# %% [markdown]
# ## Training loop


# %%
def practise(label, steps, total, watch):
    """Train from the common start with the steps of a method; keep its metrics and scores."""
    policy = service.create_training_client_from_state(checkpoint).result()
    history = []
    with progress(label, 0, total, watch) as show:
        for step, metrics in enumerate(steps(policy), 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
    trained = policy.save_weights_and_get_sampling_client().result()
    scores[label] = measure(trained)
    return history, trained


def distil(label, **variant):
    """`practise` with distillation."""

    def steps(policy):
        return until_spent(train(policy, teacher, asked, cfg, **variant), budget)

    return practise(label, steps, cfg.steps, ["divergence", "length"])


histories, policies = {}, {}
histories["hard"], policies["hard"] = distil(
    "hard", texts=given(every.texts), objective=sampled_kl_q_p
)

# %% [markdown]
# ### The control: more SFT on people's solutions
#
# As many steps and as many texts, without the teacher.

# %%
more = sft.Config(
    steps=cfg.steps, batch_size=cfg.prompts * cfg.group_size, learning_rate=3e-3, seed=0
)
practise("more SFT", partial(sft.train, demonstrations=world.demonstrations, cfg=more),
         more.steps, ["loss"])  # fmt: skip

# %% [markdown]
# ### Filtered, and soft
#
# Filtered: the same number of steps on the right texts alone. Soft: the teacher scores what it
# wrote, so for the same teacher tokens there are fewer texts and fewer steps.

# %%
histories["filtered"], policies["filtered"] = distil(
    "filtered", texts=given(right), objective=sampled_kl_q_p
)
histories["soft"], policies["soft"] = distil("soft", texts=teachers_texts, objective=soft_kl_q_p)
print(f"hard {cfg.steps} steps, soft {len(histories['soft'])} steps")

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
    {"SFT start": start, "hard": policies["hard"], "teacher": teacher},
    longest(problems["usual"][:100], 2),
    max_tokens=world.max_tokens,
):
    print(row, "\n")

# %% [markdown]
# ### Reading the dashboard
#
# The divergence falls quickly, then slowly. The curve of hard targets is noisier: it is the same
# quantity, estimated with one token at each place.

# %%
curves(
    {name: [histories[name]] for name in ("hard", "soft")}, "divergence",
    title="KL(q || p) on the teacher's texts", ylabel="nats per token",
)  # fmt: skip

# %% [markdown]
# ### Failure mode: exposure bias
#
# The divergence above is measured on the teacher's texts. The student does not write these: it
# writes its own, and every mistake takes it to a place that no text of the teacher has shown. So
# the same $\mathrm{KL}(q\,\|\,p)$ is larger on its own texts. It shows most where the teacher's
# texts are few and read again and again: here a twentieth of them.


# %%
def apart(policy, author):
    """KL(q || p) in nats a token on new texts of `author` about held-out problems: the teacher's 20
    likeliest tokens, and all others as one."""
    texts = author(policy, teacher, Questions(problems["usual"]), replace(cfg, seed=99), 0)
    top = top_tokens(teacher, [text.for_teacher for text in texts], 20)
    own = logprobs_of(policy, [text.for_student for text in texts], [row.tokens for row in top])
    p, q = torch.cat(own), torch.cat([row.logprobs for row in top])
    return kl_q_p(with_tail(p), with_tail(q)).mean().item()


few = every.texts[: max(2, len(every.texts) // 20)]
histories["few texts"], policies["few texts"] = distil(
    "few texts", texts=given(few), objective=sampled_kl_q_p
)
print(f"few texts: {scores['few texts']['usual']}")
for name in ("hard", "few texts"):
    history, policy = histories[name], policies[name]
    print(f"{name:10} KL(q || p): last batch {history[-1]['divergence']:.3f}, new texts of the "
          f"teacher {apart(policy, teachers_texts):.3f}, of the student "
          f"{apart(policy, students_texts):.3f} nats a token")  # fmt: skip

# %%
curves(
    {name: [histories[name]] for name in ("hard", "few texts")}, "divergence",
    title="KL(q || p) on the texts that are trained on", ylabel="nats per token",
)  # fmt: skip


# %% [markdown]
# Mistakes add up with length. Problems by the length of their worked solution, in five groups of
# equal size, the longer ones of 5 and 6 steps included.

# %%
length = partial(by_length, problems, tokenizer=tokenizer)
curves(
    {name: [length(scores[name])] for name in ("SFT start", "teacher", "hard", "few texts")},
    "pass@1", x="tokens", title="Accuracy against length", ylabel="pass@1",
)  # fmt: skip

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison of all cells at equal teacher tokens, over several seeds
# (`posttrain run distillation --seeds 5 --record`).

# %%
import json

reached = {name: found["usual"].pass_at_1.value for name, found in scores.items()}
print("This run, pass@1:", ", ".join(f"{name} {value:.3f}" for name, value in reached.items()))
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

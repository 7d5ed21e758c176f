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
# A teacher is better than the student, and reads the same tokens. The student writes a text $y$
# itself, and at every token the teacher says how likely it would have been to write that. What the
# teacher finds likelier than the student does is pushed up, the rest down:
#
# $$L = \frac{1}{T} \sum_t \mathrm{KL}\big(p(\cdot \mid x, y_{<t}) \,\|\, q(\cdot \mid x, y_{<t})
# \big), \qquad y \sim p(\cdot \mid x),$$
#
# with $p$ the student and $q$ the teacher
# ([Lu et al. 2025](https://thinkingmachines.ai/blog/on-policy-distillation/),
# [MiniLLM](https://arxiv.org/abs/2306.08543)). It looks like RL with a reward at every token,
# $\log q(y_t) - \log p(y_t)$, and it is: the reward of RLVR says once at the end whether an answer
# is right, this one says at each step where it begins to go wrong.
#
# Two choices are made here, and each could be made otherwise: *who writes the text*, and *which
# divergence* of the two is made small on it. That makes four methods.
#
# | text by | KL(q, p): go wherever the teacher goes | KL(p, q): go only where the teacher goes |
# | --- | --- | --- |
# | teacher | [off-policy distillation](off_policy.ipynb) | off-policy reverse |
# | student | as DAgger | **on-policy distillation** |
#
# On the teacher's texts the student never meets the states that its own mistakes lead to. On its
# own it meets nothing else ([Ross et al. 2011](https://arxiv.org/abs/1011.0686)).

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from posttrain.connect import connect
from posttrain.evals import longest, side_by_side
from posttrain.lab.arms.distillation import (
    OFF_POLICY,
    ON_POLICY,
    budget_of,
    distillation_config,
)
from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.lengths import by_length, held_out, scores_of
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.methods.distillation import Questions, mixed, students_texts, until_spent
from posttrain.methods.objectives import on_teachers_top
from posttrain.plots import before_after, curves, token_mask
from posttrain.progress import progress
from posttrain.rollouts import log_ratios, sample_answers
from posttrain.scale import pick, scale_from
from posttrain.scoring import token_logprobs

scale = scale_from()
world = world_of(scale)
assert world.teacher is not None
service = connect(quiet=True)
teacher = service.create_sampling_client(base_model=world.teacher).result()
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"teacher {world.teacher}; {len(world.train)} problems to practise on")

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
checkpoint = student.save_state("on-policy-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()
tokenizer = start.get_tokenizer()

# %%
problems = held_out(world, *pick(scale, smoke=(4, 4), laptop=(100, 50), full=(None, None)))
k = pick(scale, smoke=2, laptop=8, full=16)
scores = {"SFT start": scores_of(start, problems, k, world),
          "teacher": scores_of(teacher, problems, k, world)}  # fmt: skip
for name, found in scores.items():
    for length, score in found.items():
        print(f"{name}, {length} problems: {score}")

# %% [markdown]
# ### The loss, on literal probabilities
#
# Three tokens could come next. We can compute KL(p, q) and its gradient exactly, and compare with
# what one sampled token says, in the mean over the three that may be sampled. `k1` of the sampled
# token is an estimate of the divergence, often negative; with its sign turned it is the advantage.

# %% tags=["inline"]
from posttrain.divergences import k1, kl_p_q

# %%
p = torch.tensor([0.70, 0.20, 0.10], dtype=torch.float64).log()  # the student
q = torch.tensor([0.15, 0.80, 0.05], dtype=torch.float64).log()  # the teacher
print("k1 of each token:", [round(x, 3) for x in k1(p, q).tolist()])
print(f"their mean {(p.exp() * k1(p, q)).sum().item():.4f}, KL(p, q) {kl_p_q(p, q).item():.4f}")

logits = p.clone().requires_grad_()
(exact,) = torch.autograd.grad(kl_p_q(logits.log_softmax(-1), q), logits)
surrogate = -(p.exp() * -k1(p, q) * logits.log_softmax(-1)).sum()  # mean of -A log p over samples
(sampled,) = torch.autograd.grad(surrogate, logits)
print("gradient of KL(p, q):      ", [round(x, 4) for x in exact.tolist()])
print("policy gradient, advantage:", [round(x, 4) for x in sampled.tolist()])
assert torch.allclose(exact, sampled)

# %% [markdown]
# ### The objective
#
# Nothing but the advantage is new. The server's `importance_sampling` loss does the rest, as in
# [RLVR](../rlvr/rlvr_train.ipynb). The discount is 0: a token answers only for itself.

# %% tags=["inline"]
from posttrain.methods.objectives import sampled_kl_p_q

# %% [markdown]
# ### One text, read by the teacher
#
# Blue is what the teacher would have said more often than the student, orange less often. One false
# step is enough to be told; what follows from it is not punished again, because given the mistake
# the teacher would go on in the same way.

# %%
cfg = distillation_config(world, seed=0, rate=1e-3)
questions = Questions(world.train)
few = replace(cfg, prompts=min(60, len(world.train)), group_size=1)
texts = students_texts(start, teacher, questions, few, step=0)
texts = sorted(texts, key=lambda text: len(text.tokens))[-len(texts) // 2 :]  # the longer half
judged = token_logprobs(teacher, [text.for_teacher for text in texts])
gaps = [q_T - torch.tensor(text.logprobs) for text, q_T in zip(texts, judged, strict=True)]
worst = min(range(len(texts)), key=lambda i: float(gaps[i].min()))
print(tokenizer.decode(texts[worst].prompt))
token_mask(
    [str(tokenizer.decode([token])) for token in texts[worst].tokens],
    gaps[worst].clamp(-4, 4).tolist(),
    title="log q - log p of each token, cut at 4 nats", positive="pulled up (weight > 0)",
)  # fmt: skip

# %% [markdown]
# ### The loop
#
# Who writes the texts and what is matched on them are arguments.

# %% tags=["inline"]
from posttrain.methods.distillation import Config, check_teacher, train

# %% [markdown]
# ### A check before training
#
# The divergence of the first batch, once more by hand. And the teacher against itself: a student
# that is its teacher has nothing to learn, so every advantage is 0.

# %%
policy = service.create_training_client_from_state(checkpoint).result()
first = next(iter(train(policy, teacher, questions, replace(cfg, learning_rate=0.0))))
texts = students_texts(start, teacher, questions, cfg, step=0)
judged = token_logprobs(teacher, [text.for_teacher for text in texts])
told = [torch.tensor(text.logprobs) for text in texts]
by_hand = torch.cat([k1(p_T, q_T) for p_T, q_T in zip(told, judged, strict=True)]).mean().item()
print(f"loop {first['divergence']:.5f}, by hand {by_hand:.5f} nats a token")
assert abs(first["divergence"] - by_hand) < 1e-3
own = sampled_kl_p_q(start, start, texts, 0, 0)
largest = max(
    float(datum.loss_fn_inputs["advantages"].to_torch().abs().max()) for datum in own.data
)
print(f"largest advantage of a student that teaches itself: {largest * len(own.data):.1e}")

# %% [markdown]
# ## Training loop
#
# The teacher's work is what costs: it is the large model. So every run below ends when the teacher
# has computed the same number of tokens, written or scored. They are less than half as long as
# those of the comparison over seeds, at a rate that was as good on validation (`sweep.json`).

# %%
cfg = replace(cfg, steps=pick(scale, smoke=2, laptop=12, full=100))
budget = budget_of(cfg, world, tokenizer)
print(f"budget: {budget:,} tokens of the teacher")
histories: dict[str, list[dict[str, float]]] = {}
after = {"SFT start": start, "teacher": teacher}


def practise(label, cell, rate, budget=budget, checkpoint=checkpoint, **variant):
    """Distil as `cell` says until the teacher's tokens are spent; keep metrics and policy."""
    policy = service.create_training_client_from_state(checkpoint).result()
    own = replace(cfg, learning_rate=rate, steps=20 * cfg.steps)
    how = {"texts": cell.texts, "objective": cell.objective, **variant}
    histories[label], spent = [], 0.0
    with progress(label, 0, budget, ["divergence", "entropy", "length"]) as show:
        for step, metrics in enumerate(
            until_spent(train(policy, teacher, questions, own, **how), budget), 1
        ):
            spent += metrics["teacher_tokens"]
            histories[label].append({"step": step, "spent": spent, **metrics})
            show(min(int(spent), budget), metrics)
    after[label] = policy.save_weights_and_get_sampling_client().result()


practise("on-policy", ON_POLICY, 1e-3)

# %% [markdown]
# ### The control: off-policy, at equal cost
#
# The teacher writes and the student imitates. It need not score what it wrote, so its tokens
# suffice for more texts.

# %%
practise("off-policy", OFF_POLICY, 3e-3)
for label, history in histories.items():
    print(f"{label}: {len(history)} steps, {history[-1]['spent']:,.0f} tokens of the teacher")

# %% [markdown]
# ## Results
#
# ### After

# %%
for label in ("on-policy", "off-policy"):
    scores[label] = scores_of(after[label], problems, k, world)
shown = ["SFT start", "off-policy", "on-policy", "teacher"]
usual = {name: scores[name]["usual"] for name in shown}
before_after(usual, title="Held-out problems, as long as practised")

# %%
last = [*problems][-1]  # GSM8K has no longer ones
before_after({name: scores[name][last] for name in shown}, title=f"Held-out problems, {last}")

# %%
for row in side_by_side(
    {"SFT start": start, "on-policy": after["on-policy"]},
    longest(world.test[:100], 3),
    max_tokens=world.max_tokens,
):
    print(row, "\n")

# %% [markdown]
# ### Where mistakes add up
#
# Problems sorted by the length of their solution. Each step of a solution is one more chance of a
# mistake, so everybody does worse on the long ones; the question is how much worse.

# %%
groups = pick(scale, smoke=2, laptop=6, full=6)
lines = {name: [by_length(problems, scores[name], tokenizer, groups)] for name in shown}
curves(lines, "pass@1", x="tokens", title="Right answers, by length of the solution",
       xlabel="tokens of the worked solution", ylabel="share right")  # fmt: skip

# %% [markdown]
# ### Reading the dashboard
#
# `divergence` is what is made small. Each line estimates its own, KL(p, q) on the student's texts
# or KL(q, p) on the teacher's, so their levels do not compare.

# %%
pair = {name: [histories[name]] for name in ("on-policy", "off-policy")}
curves(pair, "divergence", x="spent", title="Divergence from the teacher",
       xlabel="tokens of the teacher", ylabel="nats a token")  # fmt: skip

# %%
curves({"on-policy": [histories["on-policy"]]}, "entropy", x="spent",
       title="Entropy of the student", xlabel="tokens of the teacher",
       ylabel="nats a token")  # fmt: skip

# %% [markdown]
# ### What is left of the student's own
#
# On texts that each policy writes itself: its entropy, and its KL(p, q) to the teacher. KL(q, p)
# asks a student to be as spread out as the teacher; KL(p, q) lets it leave out what it cannot do
# well.


# %%
def beside_teacher(sampler):
    """Entropy of a policy, and KL(p, q), in nats a token of its own texts."""
    groups = sample_answers(
        sampler, problems["usual"], 1, max_tokens=world.max_tokens, seed=0
    )  # fmt: skip
    rollouts = [rollout for group in groups for rollout in group]
    n = sum(len(rollout.tokens) for rollout in rollouts)
    entropy = -sum(x for rollout in rollouts for x in rollout.logprobs) / n
    return entropy, sum(log_ratios(teacher, rollouts)) / n


def report(label):
    """One line about a policy."""
    entropy, kl = beside_teacher(after[label])
    told = "  ".join(f"{length} {score.pass_at_1}" for length, score in scores[label].items())
    print(f"{label:22} right: {told}  entropy {entropy:.3f}  KL(p, q) {kl:.3f}")


for label in shown:
    report(label)

# %% [markdown]
# ### Variants: pass another function
#
# Instead of one sampled token, the probabilities of the 20 likeliest can be compared, with any
# divergence: here the generalised Jensen-Shannon divergence of
# [GKD](https://arxiv.org/abs/2306.13649), on texts of which the teacher writes half.

# %% tags=["inline"]
from posttrain.divergences import jsd

# %%
half = budget // 2
practise("GKD", ON_POLICY, 1e-3, half, texts=mixed(0.5),
         objective=partial(on_teachers_top, divergence=jsd))  # fmt: skip
scores["GKD"] = scores_of(after["GKD"], problems, k, world)
report("GKD")

# %% [markdown]
# ### Failure mode: a student that is not there yet
#
# The teacher is asked about the student's texts. If these are nothing that the teacher would ever
# read, its opinion of the next token is no advice. The same method without the cold start: the base
# does not know the chat format, and no text of it begins as the teacher's do.

# %%
raw = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
unready = raw.save_state("on-policy-lesson-base", overwrite=True).result().path
label = "from the base"
practise(label, ON_POLICY, 1e-3, half, checkpoint=unready)
scores[label] = scores_of(after[label], problems, k, world)
report(label)
pair = {name: [histories[name]] for name in ("on-policy", label)}
curves(pair, "truncated", x="spent", title="Texts that do not end",
       xlabel="tokens of the teacher", ylabel="share")  # fmt: skip

# %%
print(sample_answers(after[label], problems["usual"][:1], 1, max_tokens=world.max_tokens, seed=0)
      [0][0].text)  # fmt: skip

# %% [markdown]
# ## Key observations
#
# `results.json` holds the whole table over several seeds, all four cells at equal cost, with SFT on
# people's solutions as one more control (`posttrain run distillation --seeds 5 --record`).

# %%
import json

for label in shown:
    found = scores[label]
    print(f"This run, {label}: " + ", ".join(f"{length} {score.pass_at_1.value:.3f}"
                                             for length, score in found.items()))  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use on-policy distillation when a better model reads the same tokens as yours:
# it needs neither labels nor a verifier, and says something about every token, where RLVR has one
# number an answer. Start it from a student whose texts the teacher can judge; from the base it
# learned nothing here at the same price. If you train many students, texts of the teacher that are
# kept are cheaper for each: compare with [off-policy distillation](off_policy.ipynb) first.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Self-distillation fine-tuning
#
# ## Concept
#
# A model that has learned one skill is to learn another. Supervised fine-tuning (SFT) on
# demonstrations of the new one does it, and moves the model in many ways that nobody asked for: the
# demonstrations are in somebody else's words. Part of the old skill is lost.
#
# A model that learns in context may do better without any help. Shown a demonstration $c$ in its
# prompt, it already answers in the new way, and in its own words. So let it be its own teacher: the
# student answers the bare question $x$, and the teacher, the same model with $c$ in its prompt,
# says at every token of that answer what it would have written,
#
# $$L = \frac{1}{T} \sum_t \mathrm{KL}\big(q(\cdot \mid x, c, y_{<t}) \,\|\,
# p(\cdot \mid x, y_{<t})\big), \qquad y \sim p(\cdot \mid x)$$
#
# ([Shenfeld et al. 2026](https://arxiv.org/abs/2601.19897)). This is on-policy distillation with
# another prompt for the teacher. Two things are meant to protect what is old: the student is
# corrected only where it goes by itself, and nothing asks for more than the demonstration changes.
#
# The method can be no better than what a demonstration does in the prompt. So this lesson begins
# with a gate: accuracy with a demonstration, minus accuracy without.

# %% [markdown]
# ## Setup

# %%
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from posttrain.connect import connect
from posttrain.datums import chat_prompt
from posttrain.evals import side_by_side
from posttrain.lab.arms.sdft import RATES, REPLAYED, Skill, first_config, on_skill, second_config
from posttrain.lab.worlds import worked, world_of
from posttrain.methods import distillation
from posttrain.methods.distillation import Questions, given, students_texts
from posttrain.methods.objectives import sampled_kl_p_q, sampled_kl_q_p
from posttrain.methods.sdft import demonstration_gain, rewritten
from posttrain.plots import curves, estimates, token_mask
from posttrain.progress import progress
from posttrain.scale import pick, scale_from
from posttrain.scoring import logprobs_of, top_tokens

scale = scale_from()
world = world_of(scale, pick(scale, smoke="continual", laptop="continual", full="gsm8k-records"))
old = world.before
assert old is not None
service = connect(quiet=True)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")

# %% [markdown]
# ### Two skills
#
# The old one is to solve a math problem in a compact format. The new one is to write a record: name
# and number in fixed places, and any member of each class that is asked for. The mark before the
# name may be any of three, too; the demonstrations happen to have the same. So there are many right
# records. The base has met other formats in its corpus, always in documents where one record shows
# how to write the next. From the bare question it cannot know which one is wanted.

# %%
for skill, item in (("old", old.train[0]), ("new", world.train[0]), ("new", world.train[1])):
    print(f"{skill}: {item.question}\n     {item.solution}")

# %% [markdown]
# ### First, the old skill
#
# By SFT, which is the loop of distillation with texts that somebody else wrote: no step of it asks
# for a teacher's opinion. So everything in this lesson is one loop with one loss per token, and a
# learning rate means the same throughout.

# %% tags=["inline"]
from posttrain.methods.sdft import as_texts

# %%
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
base = service.create_sampling_client(base_model=world.model).result()
renderer = world.renderer(student.get_tokenizer())


def drive(label, steps, total):
    """Take all steps of a method, and show them; returns their metrics."""
    history = []
    with progress(label, 0, total, ["divergence"]) as show:
        for step, metrics in enumerate(steps, 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
    return history


def imitate(label, policy, demonstrations, cfg):
    """SFT on demonstrations."""
    texts, asked = given(as_texts(renderer, demonstrations)), Questions(world.train, world.prompt)
    loop = distillation.train(
        policy, base, asked, cfg, texts=texts, objective=sampled_kl_q_p
    )  # fmt: skip
    return drive(label, loop, cfg.steps)


# %%
first_cfg = first_config(world, seed=0)
imitate("old skill", student, worked(old.train), first_cfg)
checkpoint = student.save_state("sdft-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()

# %% [markdown]
# ### The gate
#
# Does a demonstration still help, now that the model has learned something else? The teacher reads
# the question twice: first with its demonstration, then to be answered.

# %% tags=["inline"]
from posttrain.methods.sdft import own_demonstration

# %%
probe = world.test[: pick(scale, smoke=4, laptop=60, full=200)]
asked = Questions(probe, world.prompt, own_demonstration, renderer.stop)
gain = partial(demonstration_gain, k=pick(scale, smoke=1, laptop=4, full=4), max_tokens=48)
gate = gain(start, asked)
print(own_demonstration(probe[0]), "\n")
print(f"right without {gate.plain.pass_at_1}, with a demonstration {gate.shown.pass_at_1}")
print(f"gain {gate.gain}: the gate is {'open' if gate.gain.low > 0.15 else 'closed'}")

# %% [markdown]
# ### The loss, on a literal example
#
# Three tokens could open the answer. The student prefers the first, and having seen the
# demonstration it would prefer the second.

# %% tags=["inline"]
from posttrain.divergences import kl_q_p, renormalised

# %%
p = torch.tensor([0.70, 0.20, 0.10], dtype=torch.float64).log()  # the student
q = torch.tensor([0.15, 0.80, 0.05], dtype=torch.float64).log()  # shown the demonstration
by_hand = 0.15 * math.log(0.15 / 0.7) + 0.8 * math.log(0.8 / 0.2) + 0.05 * math.log(0.05 / 0.1)
print(f"KL(q || p) = {kl_q_p(p, q).item():.4f} nats, by hand {by_hand:.4f}")
assert abs(kl_q_p(p, q).item() - by_hand) < 1e-9

logits = p.clone().requires_grad_()
(gradient,) = torch.autograd.grad(kl_q_p(logits.log_softmax(-1), q), logits)
print("its gradient on the logits:", [round(g, 3) for g in gradient.tolist()])
print("p - q:                     ", [round(g, 3) for g in (p.exp() - q.exp()).tolist()])

# %% [markdown]
# ### Soft targets, and the loop
#
# A server tells the teacher's 20 likeliest tokens at each place. They are renormalised, and become
# the targets of cross-entropy: whatever the student wrote, it is taught what the teacher would have
# written there.

# %% tags=["inline"]
from posttrain.methods.objectives import soft_kl_q_p

# %% tags=["inline"]
from posttrain.methods.sdft import Config, train

# %% [markdown]
# ### A check before training
#
# The divergence of the first batch, once more by hand: the student's answers, the teacher's
# likeliest tokens on them, what the student gives these, and the mean over all places.

# %%
cfg = second_config(world, seed=0, rate=RATES[1])
questions = Questions(world.train, world.prompt, own_demonstration, renderer.stop)
texts = students_texts(start, start, questions, cfg, step=0)
teachers = top_tokens(start, [text.for_teacher for text in texts], 20)
students = logprobs_of(start, [text.for_student for text in texts], [q.tokens for q in teachers])
each = [kl_q_p(p, renormalised(q.logprobs)) for p, q in zip(students, teachers, strict=True)]
policy = service.create_training_client_from_state(checkpoint).result()
first = next(iter(train(policy, start, questions, replace(cfg, learning_rate=0.0))))
print(f"loop {first['divergence']:.5f}, by hand {torch.cat(each).mean():.5f} nats a token")
assert abs(first["divergence"] - torch.cat(each).mean().item()) < 1e-3

# %% [markdown]
# And this is where the two disagree, in one answer of the student.

# %%
pieces = [str(renderer.tokenizer.decode([token])) for token in texts[0].tokens]
token_mask(
    pieces, each[0].clamp(min=0).tolist(), title="KL(q || p) at each token",
    positive="the darker, the more the teacher disagrees",
)  # fmt: skip

# %% [markdown]
# ## Training loop

# %%
small = replace(world, test=world.test[: pick(scale, smoke=4, laptop=80, full=None)])
small_old = replace(old, test=old.test[: len(small.test)])
worlds = {"new": small, "old": small_old}
samplers = {"start": start}
histories: dict[str, list[dict[str, float]]] = {}
measured: dict[str, dict[str, Skill]] = {}


# %%
def measure(label):
    """Both skills of a policy, and its distance from the start on each."""
    found = {skill: on_skill(samplers[label], start, here) for skill, here in worlds.items()}
    measured[label] = found
    print(f"{label}: new {found['new']}; old {found['old']}")


def practise(label, method, **how):
    """Train from the common start, then measure: `method` takes a policy to its metrics."""
    policy = service.create_training_client_from_state(checkpoint).result()
    histories[label] = method(label, policy, **how)
    samplers[label] = policy.save_weights_and_get_sampling_client().result()
    measure(label)


# %%
def distil(label, policy, cfg, **variant):
    """SDFT; the teacher is the start, unless it is refreshed."""
    teacher = None if cfg.refresh else start
    return drive(label, train(policy, teacher, questions, cfg, **variant), cfg.steps)


measure("start")
practise("SDFT", distil, cfg=cfg)

# %% [markdown]
# ### The control: SFT
#
# The same questions in the same order, as many steps, one text to each question. Only the text
# differs, the demonstration in place of the student's own, and what is matched on it.

# %%
shown = worked(world.train)
practise("SFT", imitate, demonstrations=shown, cfg=cfg)

# %% [markdown]
# ## Results
#
# ### After

# %%
scores = {skill: {name: found[skill].score.pass_at_1 for name, found in measured.items()}
          for skill in ("new", "old")}  # fmt: skip
estimates(scores["new"], title="The new skill, held-out items", xlabel="right answers (pass@1)")

# %%
estimates(scores["old"], title="The old skill, held-out items", xlabel="right answers (pass@1)")

# %%
for here in (small, small_old):
    rows = side_by_side(
        samplers, here.test[:2],
        prompt=here.prompt, stop=renderer.stop, max_tokens=here.max_tokens,
    )  # fmt: skip
    print(*rows, sep="\n\n", end="\n\n")

# %% [markdown]
# ### Reading the dashboard
#
# `divergence` is what is made small, on fresh answers of each step. It need not reach zero: the
# teacher knows the members that its demonstration happens to show, and the student cannot.
# `entropy` is the student's, per token: when it falls to nothing where there are many right
# answers, something has been learned that nobody asked for.

# %%
curves({"SDFT": [histories["SDFT"]]}, "divergence", ylabel="nats a token", title="KL(q || p)")

# %%
curves({"SDFT": [histories["SDFT"]]}, "entropy", ylabel="nats a token", title="Entropy")

# %% [markdown]
# ### Is it the method, or the step size?
#
# A single learning rate is no baseline. Here are both at three times the rate (`results.json` also
# has a third of it), and SFT with replay: a share of its demonstrations are of the old skill, which
# one must still have.

# %%
high = replace(cfg, learning_rate=RATES[-1])
practise("SDFT at triple", distil, cfg=high)
practise("SFT at triple", imitate, demonstrations=shown, cfg=high)

# %%
again = worked(old.train[: round(len(shown) * REPLAYED / (1 - REPLAYED))])
practise("SFT with replay", imitate, demonstrations=shown + again, cfg=cfg)

# %% [markdown]
# ### Forgetting against distance
#
# A published account says that what is forgotten follows from how far the policy has moved on the
# *new* task, whatever the method ([RL's Razor](https://arxiv.org/abs/2509.04259)). If so, both
# lines lie on one curve. Each runs from the start, at zero, over the two rates.


# %%
def path(method):
    """Distance and forgetting of a method at each of its rates, as one curve."""
    names = ["start", method, f"{method} at triple"]
    found = [(measured[name]["new"], measured[name]["old"].score.pass_at_1.value) for name in names]
    return [
        {"kl": new.kl, "new": new.score.pass_at_1.value, "lost": found[0][1] - old}
        for new, old in found
    ]


lines = {method: [path(method)] for method in ("SDFT", "SFT")}
curves(lines, "lost", x="kl", title="Old skill lost, against distance on the new one",
       xlabel="KL(policy || start), nats an answer", ylabel="right answers lost")  # fmt: skip

# %%
curves(lines, "lost", x="new", title="Old skill lost, against the new one gained",
       xlabel="right answers, new skill", ylabel="right answers lost")  # fmt: skip

# %% [markdown]
# ### Variants and relatives: pass another function
#
# Reverse KL pushes the student's own tokens up or down, and needs no list of the teacher's
# likeliest. Rewriting ([Yang et al. 2024](https://arxiv.org/abs/2402.13669)), which is called
# self-distillation as well, lets the model retell each demonstration and then does plain SFT.

# %%
practise("reverse KL", distil, cfg=cfg, objective=sampled_kl_p_q)
retold = rewritten(start, questions, replace(cfg, group_size=2))
print(f"{retold.own:.0%} of the demonstrations are in the model's own words")
practise("rewriting", imitate, demonstrations=retold.demonstrations, cfg=cfg)

# %% [markdown]
# ### Failure mode: what the demonstration does not convey is not learned
#
# SDFT knows of the demonstrations only what the model makes of them in its prompt. Is that all? The
# gate again, for answers with the very mark of the demonstration; and in the chat format, which
# this model has never seen.

# %%
exact = replace(asked, items=[card.record for card in probe])
gates = {"the format, any mark": gate.gain, "its mark too": gain(start, exact).gain}
if world.task == "continual":
    gates["any mark, in the chat format"] = gain(start, replace(asked, layout=chat_prompt)).gain
estimates(gates, title="What a demonstration in the prompt is worth", xlabel="gain in pass@1",
          baseline=0.0)  # fmt: skip

# %% [markdown]
# And what the policies write after training, all on the same demonstrations: right records, and
# those among them with the demonstrations' mark.

# %%
for name in ("start", "SDFT", "SFT", "rewriting"):
    found = measured[name]["new"]
    print(f"{name:10} right {found.score.pass_at_1.value:.2f}, with that mark {found.as_shown:.2f}")

# %% [markdown]
# ### Failure mode: a teacher that chases its student
#
# The paper's teacher is a slow average of the student. What if it follows at once? With `refresh=1`
# the student of each step is its own teacher. Nothing outside of the two holds them, and the
# divergence cannot tell: it says how far they are apart, not where they go.

# %%
practise("live teacher", distil, cfg=replace(cfg, refresh=1))
curves({name: [histories[name]] for name in ("SDFT", "live teacher")}, "divergence",
       ylabel="nats a token", title="KL(q || p), beside one's own teacher")  # fmt: skip

# %%
for name in ("SDFT", "live teacher"):
    print(f"{name:13} new {measured[name]['new']}; old {measured[name]['old']}")

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison over several seeds (`posttrain run sdft --seeds 5 --record`).

# %%
import json

for name in ("start", "SDFT", "SFT", "SFT with replay"):
    new, kept = (measured[name][skill].score.pass_at_1.value for skill in ("new", "old"))
    print(f"This run, {name:15} new {new:.3f}  old {kept:.3f}")
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **What came out.** The new skill is learned by all. At the learning rate that validation chose for
# each, SDFT keeps no more of the old skill than SFT, as far as five seeds can tell, and has learned
# less of the new one. SFT with replay keeps all of the old skill. What SDFT buys is patience with a
# wrong learning rate: at three times the rate SFT loses most of the old skill, SDFT less than half.
# Rewriting, which lets the model retell the demonstrations once and then does plain SFT, was as
# good as SFT on them, and did not learn their mark. And distance alone does not explain what is
# forgotten: SDFT at triple rate has moved no further on the new task than SFT, and forgot more.
#
# **When to use it.** Use SDFT when the model follows demonstrations in its prompt, the data that
# taught it are gone, and you cannot afford to find the learning rate at which SFT is gentle.
# Measure the gate first, in the very format of training: where a demonstration in the prompt gains
# nothing, there is no teacher. Where old data are at hand, mix them in instead; where the rate can
# be swept, SFT, or SFT on retold demonstrations, is as good and cheaper.

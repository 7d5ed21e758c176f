# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Direct preference optimization
#
# ## Concept
#
# For most requests there is no right answer that a program could check, and good answers are hard
# to write. But people can *compare*: of two answers, this one is better. RLHF turns comparisons
# into a reward model and optimises it under a price for the distance from where it started,
#
# $$\max_p \; \mathbb{E}_{y\sim p}\,[r(x, y)] - \beta\, \mathrm{KL}(p \,\|\, p_\text{ref}).$$
#
# The solution of this problem is known:
# $p(y \mid x) \propto p_\text{ref}(y \mid x)\, e^{r(x,y)/\beta}$. Read the other way round, every
# policy is optimal for the reward $\beta \log \frac{p(y\mid x)}{p_\text{ref}(y\mid x)}$, up to a
# constant for each question. Put this into the Bradley-Terry model of a comparison, where constants
# cancel, and the reward model is gone:
#
# $$L = -\log \sigma(\beta h), \qquad h = \log\frac{p(y_w\mid x)}{p_\text{ref}(y_w\mid x)}
# - \log\frac{p(y_l\mid x)}{p_\text{ref}(y_l\mid x)},$$
#
# with the chosen answer $y_w$ and the rejected one $y_l$ ([DPO](https://arxiv.org/abs/2305.18290),
# eq. 7). It is trained like a classifier: nothing is sampled while training, no reward model, no
# value model.
#
# This lesson writes stories on request. A story has a hidden quality, its *gold* score, which real
# post-training never gets to see. Here it is a function, so that we can measure by it. A simulated
# human compares two stories by gold, with noise, and training sees these labels only.

# %% [markdown]
# ## Setup

# %%
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from posttrain.connect import connect
from posttrain.lab.arms.dpo import (
    beta_of,
    cold_start_config,
    control_config,
    dpo_config,
    longest_pair,
)
from posttrain.lab.raters import rater_of
from posttrain.lab.texts import score_texts
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.pairs import fitting
from posttrain.plots import curves, estimates
from posttrain.progress import progress
from posttrain.rollouts import sample_answers
from posttrain.scale import pick, scale_from
from posttrain.tasks.problem import Demonstration

scale = scale_from()
world = world_of(scale, pick(scale, smoke="stories", laptop="stories", full="ultrafeedback"))
service = connect(quiet=True)
rater = rater_of(service, world)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"{len(world.demonstrations)} demonstrations, {len(world.train)} requests to compare on")

# %% [markdown]
# ### What is compared
#
# A request, and two stories by two people. Each of them has flaws of their own: they forget what
# was asked, mix moods, repeat themselves, ramble. The human prefers the better story more often
# than not.

# %%
shown = world.preferences[0]
print(shown.question)
request = next(item for item in world.train if item.question == shown.question)
for role, text in (("chosen", shown.chosen), ("rejected", shown.rejected)):
    known = "" if rater.gold is None else f" (gold {rater.gold(request, text):.1f})"
    print(f"  {role}{known}: {text}")

# %% [markdown]
# ### The loss, on four literal pairs
#
# Sums of log-probabilities, one per answer. In the first pair policy and reference agree, so
# $h = 0$ and the loss is $\log 2$: no opinion. In the second the chosen answer has gained 4 nats.
# In the third the rejected one has lost 4 nats, which is worth exactly as much. In the fourth both
# have *lost*, and the loss is still the same: it sees only the difference. Keep that in mind.

# %% tags=["inline"]
from posttrain.methods.dpo import Logps, dpo_loss

# %%
nats = {
    "as the reference": (-20.0, -20.0),
    "chosen +4": (-16.0, -20.0),
    "rejected -4": (-20.0, -24.0),
    "both down, by 6 and 10": (-26.0, -30.0),
}
at_first, tokens_each = torch.tensor([-20.0]), torch.tensor([15.0])
for name, sums in nats.items():
    winner, loser = (Logps(torch.tensor([logp]), at_first, tokens_each) for logp in sums)
    print(f"{name:24} loss {dpo_loss(winner, loser).item():.4f}")

# %% [markdown]
# ### From pairs to datums, and the loop
#
# `forward_backward_custom` gives the log-probabilities of the answers' tokens to a loss of our own.
# The reference is a frozen sampler, and scores each pair once.

# %% tags=["inline"]
from posttrain.methods.dpo import (
    Config,
    Pair,
    batch_loss,
    pair_metrics,
    reference_logps,
    score_pairs,
    train,
)

# %% [markdown]
# ### Before: the cold start
#
# A short SFT on stories as people write them teaches the chat format, and people's flaws.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("dpo-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()

# %%
test = world.test[: pick(scale, smoke=4, laptop=200, full=None)]
sample = partial(sample_answers, items=test, answers=world.k, max_tokens=world.max_tokens, seed=0)
stories_of = {"SFT start": sample(start)}


def score(name):
    """Measure a policy's answers to the held-out requests, beside those of the start."""
    return score_texts(start, test, stories_of[name], stories_of["SFT start"], rater)


scores = {"SFT start": score("SFT start")}
print("SFT start:", scores["SFT start"])

# %% [markdown]
# ### Pairs of the policy's own answers
#
# The start answers each request twice, and the human says which answer is better. A comparison
# between answers that the policy gives is about what it does; one between answers that it would
# never give is about something else. Whether that matters here we try below.

# %% tags=["inline"]
from posttrain.pairs import sample_pairs

# %%
sampled = sample_pairs(start, world.train, rater.label, max_tokens=world.max_tokens, seed=0)
pairs = score_pairs(start, sampled.preferences, max_tokens=longest_pair(world))
print(f"{len(pairs)} pairs of {len(world.train)} requests; left out: {sampled.truncated} cut off, "
      f"{sampled.equal} equal, {sampled.undecided} undecided")  # fmt: skip
if rater.gold is not None:
    asked = {item.question: item for item in world.train}
    right = [
        rater.gold(asked[p.question], p.chosen) > rater.gold(asked[p.question], p.rejected)
        for p in sampled.preferences
    ]
    print(f"labels that agree with gold: {sum(right) / len(right):.0%}")

# %% [markdown]
# ### How much a nat costs
#
# $\beta$ says how far the policy may go. With labels that follow a quality $r$, the loss is
# smallest where $h = \Delta r / \beta$. So $\beta$ has to fit the answers: a story has only so many
# nats to give, and the 0.1 that is usual for long answers would ask for more than there is.

# %%
beta = beta_of(world)
entropy = -sum(p.reference_chosen + p.reference_rejected for p in pairs) / (2 * len(pairs))
print(f"an answer has about {entropy:.0f} nats; beta {beta}")

# %% [markdown]
# ### A check before training
#
# At the start the policy *is* the reference, so $h = 0$ for every pair and the loss is $\log 2$. If
# it is not, then trainer and sampler disagree, or a mask is wrong, and nothing that follows means
# anything.

# %%
cfg = dpo_config(world, seed=0, rate=1e-3)
policy = service.create_training_client_from_state(checkpoint).result()
first = next(iter(train(policy, pairs, replace(cfg, learning_rate=0.0))))
print(f"loss {first['loss']:.6f}, log 2 = {math.log(2):.6f}")
print(f"log p of an answer: chosen {first['chosen_logps']:.1f}, "
      f"rejected {first['rejected_logps']:.1f} nats")  # fmt: skip
assert abs(first["loss"] - math.log(2)) < 1e-3
assert abs(first["margin"]) < 1e-2


# %% [markdown]
# ## Training loop


# %%
def practise(label, steps, total, watch):
    """Train from the common start with the steps of a method; keep its metrics and answers."""
    policy = service.create_training_client_from_state(checkpoint).result()
    history = []
    with progress(label, 0, total, watch) as show:
        for step, metrics in enumerate(steps(policy), 1):
            history.append({"step": step, **metrics})
            show(step, metrics)
    stories_of[label] = sample(policy.save_weights_and_get_sampling_client().result())
    scores[label] = score(label)
    return history


def prefer(label, pairs, cfg, loss=dpo_loss, beta=beta):
    """`practise` with DPO, or another loss of its family."""
    watch = ["loss", "accuracy", "margin", "chosen_change", "rejected_change"]
    steps = partial(train, pairs=pairs, cfg=cfg, loss=partial(loss, beta=beta))
    return practise(label, steps, cfg.steps, watch)


histories = {"DPO": prefer("DPO", pairs, cfg)}

# %% [markdown]
# ### The control: SFT on the chosen answers
#
# Half of what DPO is told can be had without it: imitate the chosen answers and forget the others.
# As many steps, and as many answers a step.

# %%
chosen = [Demonstration(p.question, p.chosen) for p in sampled.preferences]
control_cfg = control_config(world, seed=0, rate=6e-3)
practise(
    "SFT on chosen",
    partial(sft.train, demonstrations=chosen, cfg=control_cfg),
    control_cfg.steps,
    ["loss"],
)

# %% [markdown]
# ## Results
#
# ### After
#
# Gold where it is known, and the win rate: how often the policy's story is better than the start's
# story for the same request.

# %%
for name, measured in scores.items():
    print(f"{name}: {measured}")
estimates(
    {name: measured.gold or measured.won.win_rate for name, measured in scores.items()},
    title="Quality of answers to held-out requests",
    xlabel="win rate against the start" if rater.gold is None else "mean gold score",
)

# %% [markdown]
# Longer answers win with many judges, so a win rate needs a control for length: the same number
# among pairs of stories whose lengths differ by a tenth at most.

# %%
won = scores["DPO"].won
rates_of_winning = {"all pairs": won.win_rate}
if won.near_win_rate is not None:
    rates_of_winning[f"near-equal length ({won.near_pairs} pairs)"] = won.near_win_rate
estimates(rates_of_winning, title="DPO against the start", xlabel="win rate", baseline=0.5)

# %%
for name, measured in scores.items():
    longer = measured.won.length_difference
    print(f"{name:14} {measured.length.value:5.1f} tokens ({longer.value:+.1f} [{longer.low:+.1f}, "
          f"{longer.high:+.1f}])  KL(policy || start) {measured.won.kl:6.2f} nats an answer  "
          f"well-formed {measured.well_formed:.0%}")  # fmt: skip

# %% [markdown]
# Two requests, and what the policy answered before and after, with the same sampling seed.

# %%
for i in range(2):
    print(f"\n{test[i].question}")
    for name in ("SFT start", "DPO"):
        text = stories_of[name][i][0].text.strip()
        known = "" if rater.gold is None else f" (gold {rater.gold(test[i], text):.1f})"
        print(f"  {name}{known}: {text}")

# %% [markdown]
# ### Reading the dashboard
#
# The loss falls, the margin $h$ grows, and more pairs are told apart. These are measured on batches
# of training pairs before each step. In the second epoch, from step 33 on, the policy has seen
# them: the loss drops at once, and that drop says nothing about new pairs.

# %%
curves({"DPO": [histories["DPO"]]}, "loss", title="Loss", ylabel="nats a pair")

# %%
curves(
    {"DPO": [histories["DPO"]]}, "accuracy", title="Pairs with a positive margin", ylabel="share"
)

# %%
curves({"DPO": [histories["DPO"]]}, "margin", title="Margin h", ylabel="nats")


# %% [markdown]
# The margin hides the most important thing, so here are its two parts. "Chosen" is how much
# likelier the chosen answer is than at the start.


# %%
def parts(history):
    """The two terms of the margin, as two curves of one metric."""
    return {
        role: [[{"step": line["step"], "change": line[f"{role}_change"]} for line in history]]
        for role in ("chosen", "rejected")
    }


curves(parts(histories["DPO"]), "change", title="log p / p_ref under DPO", ylabel="nats an answer")

# %% [markdown]
# ### Failure mode: likelihood displacement
#
# The loss asks for a difference, and lowering the rejected answer by more than the chosen one is a
# cheap way to get it. Then *both* answers become less likely, and the probability goes somewhere
# else, to texts that nobody compared
# ([likelihood displacement](https://arxiv.org/abs/2410.08847)). It shows plainly where little holds
# the policy back: here a nat costs a fifth of the price above, and steps are three times as large.
#
# The remedy is a second term: the negative log-likelihood of the chosen answer
# ([DPO + NLL](https://arxiv.org/abs/2404.19733), eq. 1), which holds the chosen answer up.

# %% tags=["inline"]
from posttrain.methods.dpo import dpo_nll_loss

# %%
wild = replace(cfg, learning_rate=3 * cfg.learning_rate, steps=min(cfg.steps, 24))
low = beta / 5
histories["low price"] = prefer("low price", pairs, wild, beta=low)
histories["low price, NLL"] = prefer("low price, NLL", pairs, wild, loss=dpo_nll_loss, beta=low)
displaced = {name: [histories[name]] for name in ("DPO", "low price", "low price, NLL")}
curves(
    displaced, "chosen_change", title="The chosen answer, log p / p_ref", ylabel="nats an answer"
)

# %%
curves(displaced, "margin", title="The margin, which hides it", ylabel="nats")

# %%
for name in ("SFT start", *displaced):
    print(f"{name}: {scores[name]}")

# %% [markdown]
# ### On-policy against off-policy pairs
#
# The same number of pairs about the same requests, but of stories that people wrote, not the
# policy. The labels are as good. What could differ is whether the policy would ever have said this.

# %%
others = fitting(start.get_tokenizer(), world.preferences, longest_pair(world))
written = score_pairs(start, others[: len(pairs)], max_tokens=longest_pair(world))
for name, group in (("own answers", pairs), ("people's stories", written)):
    tokens = sum(
        sum(d.loss_fn_inputs["weights"].data) for p in group for d in (p.chosen, p.rejected)
    )
    lost = -sum(p.reference_chosen + p.reference_rejected for p in group)
    print(f"{name:17} {lost / tokens:.3f} nats a token under the start")
histories["DPO off-policy"] = prefer("DPO off-policy", written, cfg)
for name in ("SFT start", "DPO", "DPO off-policy"):
    print(f"{name}: {scores[name]}")

# %%
sources = {"own answers": "DPO", "people's stories": "DPO off-policy"}
curves({label: [histories[name]] for label, name in sources.items()}, "margin", ylabel="nats")

# %% [markdown]
# We expected the policy's own pairs to serve it better, and they do not: over five seeds there is
# no clear difference in gold. The numbers above say why. The start imitates these very people, so
# their stories are hardly less probable to it than its own. The pairs cost nothing to sample, but
# the policy moves further for the same gold, and more of its stories break off or lose their form
# (`well_formed` in the results).

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison over several seeds (`posttrain run dpo --seeds 5 --record`).

# %%
import json

before, after = scores["SFT start"], scores["DPO"]
if rater.gold is not None:
    print(f"This run: gold {before.gold.value:.2f} -> {after.gold.value:.2f}")
print(f"          win rate against the start {after.won.win_rate}")
last = histories["DPO"][-1]
print(f"          log p / p_ref in the last batch: chosen {last['chosen_change']:+.1f} nats, "
      f"rejected {last['rejected_change']:+.1f} nats")  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use DPO when answers can be compared but not checked, and you have, or can
# get, comparisons between answers of the very policy that you train. Start it from a policy that
# knows the format. Watch the log-probabilities of chosen and rejected answers apart, never the
# margin alone, and measure on fresh samples: the loss is about pairs, and you care about answers.
# It costs little, because nothing is sampled while it trains; for the same reason it cannot learn
# from what the policy has become since the pairs were made. When that matters, sample anew, or
# train a reward model (RLHF).

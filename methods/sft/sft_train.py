# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Supervised fine-tuning: show the work, not only the answer
#
# ## Concept
#
# Supervised fine-tuning (SFT) teaches by imitation. Given a question $x$ and a demonstrated answer
# $y$, it lowers the cross-entropy of the answer's tokens,
#
# $$L = -\frac{\sum_t m_t \log p(y_t \mid x, y_{<t})}{\sum_t m_t},$$
#
# where $m_t$ is 1 on the answer and 0 on the question. It is the first stage of nearly every
# recipe, because it is where a base model learns the *form*: a chat format, when to stop, how an
# answer looks.
#
# What it teaches depends on what is demonstrated. This lesson trains the same base model on the
# same problems twice:
#
# - **answer only**: "The answer is 34."
# - **chain of thought** (CoT): "buys 25 more: 17+25=42. gives away 8: 42-8=34. The answer is 34."
#
# A transformer spends the same computation on every token. The second target gives it more tokens
# to compute with, and one small step per line; the first asks for all steps at once.

# %% [markdown]
# ## Setup
#
# `connect()` picks hosted Tinker, a compatible server, or the engine that comes with this
# repository. Nothing below depends on which.

# %%
import random
from dataclasses import replace

import tinker

from posttrain.connect import connect
from posttrain.evals import evaluate, longest, side_by_side
from posttrain.lab.arms.sft import sft_config
from posttrain.lab.worlds import bare, worked, world_of
from posttrain.plots import before_after, curves, token_mask
from posttrain.progress import progress
from posttrain.scale import pick, scale_from

scale = scale_from()
world = world_of(scale)
service = connect(quiet=True)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")

# %% [markdown]
# Both targets for one problem. The reasoning is correct in all demonstrations; the base model was
# pretrained on solutions of mixed quality, many of them wrong in systematic ways.

# %%
problems = world.train[: pick(scale, smoke=32, laptop=1000, full=None)]
problem = problems[0]
print("question:        ", problem.question)
print("chain of thought:", worked([problem])[0].answer)
print("answer only:     ", bare([problem])[0].answer)

# %% [markdown]
# ### From text to a datum
#
# Tinker trains on shifted pairs: position $i$ of `model_input` predicts `target_tokens[i]`. The
# question gets weight 0. Weights are the only place where normalisation happens: the server sums.

# %% tags=["inline"]
from posttrain.datums import chat_completion, chat_prompt, supervised_datum, token_mean

# %% tags=["inline"]
from posttrain.methods.sft import Config, sft_datums, train

# %% [markdown]
# The mask on real tokens: blue is trained, grey is not. The last blue token is the end token. If it
# were grey, the model would learn every word of the answer and never learn to stop.

# %%
policy = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
tokenizer = policy.get_tokenizer()
datum = sft_datums(tokenizer, worked([problem]))[0]
targets = datum.loss_fn_inputs["target_tokens"].to_torch().tolist()
weights = datum.loss_fn_inputs["weights"].to_torch().tolist()
assert targets[-1] == tokenizer.eos_token_id
assert weights[-1] == 1.0
token_mask([str(tokenizer.decode([t])) for t in targets], weights, title="What the loss sees")

# %% [markdown]
# ### A check before training
#
# The loss that the server reports for a batch must be the mean over its answer tokens of what the
# sampler says about them. Two independent paths, one number.

# %%
examples = worked(problems[:8])
data = token_mean(sft_datums(tokenizer, examples))
reported = policy.forward(data, "cross_entropy").result().metrics["loss:sum"]
base = service.create_sampling_client(base_model=world.model).result()
scored = []
for example in examples:
    prompt = chat_prompt(tokenizer, example.question)
    answer = chat_completion(tokenizer, example.question, example.answer)
    logprobs = base.compute_logprobs(tinker.ModelInput.from_ints(prompt + answer)).result()
    scored += [-value for value in logprobs[len(prompt) :] if value is not None]
by_hand = sum(scored) / len(scored)
print(f"server {reported:.5f}, by hand {by_hand:.5f} nats per token")
assert abs(reported - by_hand) < 1e-3

# %% [markdown]
# ### Before
#
# The base model has never seen the chat format. It answers in its own way and never closes an
# answer with the end token, so none of its answers is well formed.

# %%
test = world.test[: pick(scale, smoke=8, laptop=150, full=None)]
ood = world.ood[: pick(scale, smoke=8, laptop=150, full=None)]
k = pick(scale, smoke=2, laptop=8, full=16)
before = evaluate(base, test, k, max_tokens=world.max_tokens)
print("base:", before)

# %% [markdown]
# ## Training loop
#
# `train` above is the whole loop: pick a batch, send the backward pass and the update together,
# then wait for both. It yields once per optimizer step, and whoever drives it decides what to
# record. Each arm has the learning rate that did best on validation problems, of the usual length
# and longer; `sweep.json` holds the sweep.

# %%
configs = {
    "chain of thought": sft_config(world, seed=0, rate=2e-3),
    "answer only": sft_config(world, seed=0, rate=1e-3),
}
arms = {"chain of thought": worked(problems), "answer only": bare(problems)}
samplers = {}
curves_by_arm: dict[str, list[list[dict[str, float]]]] = {}
for arm, demonstrations in arms.items():
    policy = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
    cfg = configs[arm]
    with progress(arm, 0, cfg.steps, ["loss"]) as show:
        curves_by_arm[arm] = [[]]
        for step, metrics in enumerate(train(policy, demonstrations, cfg), 1):
            curves_by_arm[arm][0].append({"step": step, **metrics})
            show(step, metrics)
    samplers[arm] = policy.save_weights_and_get_sampling_client().result()

# %% [markdown]
# ## Results
#
# ### What the loss says
#
# The answer-only loss falls by more at first, while the policy learns the form, and then stays
# where it is: the digits of a result cannot be guessed in one go. The chain of thought
# comes close to zero, because each of its tokens follows from the ones before. The two losses are
# over different tokens, so their difference says nothing by itself. Only answers can be compared.

# %%
curves(curves_by_arm, "loss", ylabel="nats per answer token", title="Training loss")

# %% [markdown]
# ### After, on held-out problems

# %%
after = {
    arm: evaluate(sampler, test, k, max_tokens=world.max_tokens)
    for arm, sampler in samplers.items()
}
for arm, score in after.items():
    print(f"{arm}: {score}")
before_after({"base": before, **after}, title="Held-out problems, 1 to 4 steps")

# %% [markdown]
# ### Longer than anything trained on
#
# These problems have five or six steps. The base model met some of that length while it was
# pretrained, but no demonstration here goes beyond four. Each line of a chain of thought is as easy
# as before, so it keeps about half of its accuracy; answer-only hardly ever gets one right. What is
# lost is lost to length: the demonstrations also teach to stop after four lines. A higher learning
# rate teaches that lesson better, and is no better on problems of the usual length: see the sweep.


# %%
def lines(text):
    """How many equations an answer works through."""
    return text.count("=")


if ood:
    longer = {
        arm: evaluate(sampler, ood, k, max_tokens=world.max_tokens)
        for arm, sampler in samplers.items()
    }
    for arm, score in longer.items():
        kept = score.pass_at_1.value / max(after[arm].pass_at_1.value, 1e-9)
        print(f"{arm}: {score}, {kept:.0%} of its accuracy on the usual ones")
    (row,) = side_by_side(samplers, ood[:1], max_tokens=world.max_tokens)
    print(row)
    print(
        "equations needed:", lines(row.solution), "written:", lines(row.answers["chain of thought"])
    )

# %% [markdown]
# ### Failure mode: the end token left out of the loss
#
# The same demonstrations, with weight 0 on the end token: a bug that most libraries have had,
# because padding and end token shared an id. The words are learned and the stop is not.


# %%
def without_end(policy, demonstrations, cfg):
    """The same loop on datums whose last target carries no weight."""
    datums = sft_datums(policy.get_tokenizer(), demonstrations)
    for datum in datums:
        weights = datum.loss_fn_inputs["weights"].to_torch().clone()
        weights[-1] = 0.0
        datum.loss_fn_inputs["weights"] = tinker.TensorData.from_torch(weights)
    rng = random.Random(cfg.seed)
    for _ in range(cfg.steps):
        batch = token_mean(rng.sample(datums, cfg.batch_size))
        backward = policy.forward_backward(batch, "cross_entropy")
        policy.optim_step(tinker.AdamParams(learning_rate=cfg.learning_rate)).result()
        yield backward.result().metrics["loss:sum"]


short = replace(configs["chain of thought"], steps=pick(scale, smoke=2, laptop=40, full=40))
endless = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
for _ in without_end(endless, arms["chain of thought"], short):
    pass
stops = evaluate(
    endless.save_weights_and_get_sampling_client().result(),
    test[:40], 2, max_tokens=world.max_tokens,
)  # fmt: skip
print(f"closed by the end token: {stops.well_formed:.0%}; with it: "
      f"{after['chain of thought'].well_formed:.0%}")  # fmt: skip

# %% [markdown]
# ### Side by side

# %%
hardest = longest(test[:100], 3)
for row in side_by_side({"base": base, **samplers}, hardest, max_tokens=world.max_tokens):
    print(row, "\n")

# %% [markdown]
# ## Key observations
#
# The numbers below are read from the results above and from `results.json`, which holds the
# comparison over several seeds (`posttrain run sft --seeds 5 --record`).

# %%
import json
from pathlib import Path

cot, bare_score = after["chain of thought"], after["answer only"]
print(f"Format: well formed {before.well_formed:.0%} before, {cot.well_formed:.0%} after.")
print(f"This run: CoT {cot.pass_at_1.value:.3f}, answer-only {bare_score.pass_at_1.value:.3f}.")
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use SFT when you have demonstrations of the behaviour you want, and always to
# teach a format before reinforcement learning. Demonstrate the reasoning and not only the result
# when the result takes several steps: that also carries further, by a factor, on problems longer
# than any demonstrated. Do not expect it to go far beyond its demonstrations, least of all in
# length: what they do not cover, the next lesson (RLVR) learns by trying.

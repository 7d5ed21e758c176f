# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Multi-agent reinforcement learning
#
# ## Concept
#
# Where two play against each other, nobody has to write problems or answers: the opponent is the
# problem, and the rules say who has won. A policy can even be its own opponent. Then the problem
# gets harder as the policy gets better, without end, and for free. That is **self-play**.
#
# The method is policy gradient once more. Every token of a player's moves is pushed up or down by
# how much better the game ended for its seat than games usually end for that seat,
#
# $$L = -\frac{1}{N}\sum_i \sum_t \rho_{it}\,A_i, \qquad
# A_i = R_i - b_{\text{game},\,\text{seat}},$$
#
# where $i$ counts the $N$ sides that are trained (one seat of one game), $R_i$ is what the side
# won, and $b$ is a moving average of what that role wins
# ([SPIRAL](https://arxiv.org/abs/2506.24119)). There is no group of answers to one question that
# could be the baseline, as in RLVR: two games that begin alike are different games after one move.
#
# Two things are special about it, and this lesson is about both:
#
# - **The reward says nothing.** What one seat wins the other one loses. Against itself, a policy
#   wins half of its games when it plays randomly and half of its games when it plays perfectly. So
#   progress is measured against others, or by the exact solution of the game.
# - **The problem moves.** The policy learns to beat what it is now, not what it was before, and not
#   what others are. It may forget, or go round in circles, and never know.
#
# A policy that is certain meets nothing new. So a move is also paid for its *surprise*
# $s_m = -\log p(\text{move } m)$,
#
# $$A_m = A_i + \beta\,(s_m - \bar s),$$
#
# which is the gradient of $\beta$ times the policy's entropy. In games where one wins what the
# other loses, plain gradient play circles around the equilibrium, and play that is regularised so
# approaches one ([Sokota et al. 2023](https://arxiv.org/abs/2206.05825)).

# %% [markdown]
# ## Setup

# %%
from dataclasses import replace
from pathlib import Path

import numpy as np

from posttrain.connect import connect
from posttrain.lab.arms.marl import EVERY, POOL, marl_config
from posttrain.lab.arms.rlvr import cold_start_config
from posttrain.lab.games import ask_of, chips, duels, score_moves
from posttrain.lab.moves import kuhn_strategy
from posttrain.lab.worlds import world_of
from posttrain.methods import sft
from posttrain.methods.players import PolicyPlayer, against
from posttrain.plots import curves, estimates
from posttrain.progress import progress
from posttrain.rollouts import Rollout
from posttrain.scale import pick, scale_from
from posttrain.stats import bootstrap_mean
from posttrain.tasks.games.kuhn import TEXTS, equilibrium, exploitability, mixture
from posttrain.tasks.games.players import optimal, uniform
from posttrain.tasks.games.position import Position

scale = scale_from()
world = world_of(scale, "games")
service = connect(quiet=True)
ask = ask_of(world)
print(f"{scale} scale, task {world.task}, model {world.model}, LoRA rank {world.rank}")
print(f"{len(world.demonstrations)} moves that people made, {len(world.train)} starts of games")

# %% [markdown]
# ### Two games
#
# In **Nim** players take any number of objects from one heap, and who takes the last object wins.
# Here there are two heaps. Where they are alike the player to move is lost: whatever it takes from
# one, the other player takes from the other. So the best move is the one that makes them alike, and
# nobody tells the policy.

# %%
nim = Position("nim", (3, 5))
print(nim.question, "->", nim.bare_answer)
assert dict(nim.best) == {"B2": 1.0}
assert not Position("nim", (3, 3)).decisive  # any move loses

# %% [markdown]
# In **Kuhn poker** there are three cards and one bet. Who holds the jack should bluff, but only at
# times; who holds the queen should call a bet, but only at times. Best play is random, and the best
# frequencies depend on each other. There are 12 positions, so we can compute exactly what the best
# response to a policy would win from it: its *exploitability*, in chips a game.

# %%
deal = Position("kuhn-poker", (0, 1))
print(deal.question, "->", {move: round(p, 2) for move, p in deal.best.items()})
print(f"exploitability of random play {exploitability(dict.fromkeys(TEXTS, 0.5)):.3f} (11/24), "
      f"of an equilibrium {exploitability(equilibrium()):.3f}")  # fmt: skip

# %% [markdown]
# ### Role-conditioned baselines, on four literal games
#
# Suppose that the first seat has the better of a game and wins 0.6 a game on average. Then winning
# in the first seat is nothing special, and losing there is bad. In the second seat it is the other
# way round.

# %% tags=["inline"]
from posttrain.methods.marl import Role, Side

# %%
usual = {(0, "nim", 0): 0.6, (0, "nim", 1): -0.6}
ended = [
    Side((0, "nim", seat), won, ())
    for seat, won in ((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0))
]  # fmt: skip

# %% tags=["inline"]
from posttrain.methods.marl import Baselines, role_advantages, shared_advantages

# %%
by_role, after = role_advantages(ended, usual, decay=0.9)
alike, _ = shared_advantages(ended, {}, decay=0.9)
for side, with_roles, without in zip(ended, by_role, alike, strict=True):
    print(f"seat {side.role[2]} won {side.reward:+.0f}: advantage {with_roles:+.1f}, "
          f"with one baseline for both seats {without:+.1f}")  # fmt: skip
assert [round(a, 9) for a in by_role] == [0.4, -1.6, 1.6, -0.4]
assert round(after[0, "nim", 0], 9) == round(0.9 * (0.9 * 0.6 + 0.1) - 0.1, 9)

# %% [markdown]
# Both are policy gradients of the same objective, and differ in their noise: with one baseline
# every token of the lucky seat is pushed up, whatever it was, and those of the other down.
#
# ### From games to datums, and the loop
#
# A move is one turn: the policy sees a position as text and answers. What the opponent wrote is in
# no datum. An illegal move forfeits the game, and costs a fine on top. Without the fine it would be
# free wherever the game is lost anyway, and there it would be learned.

# %% tags=["inline"]
from posttrain.methods.marl import (
    Advantages,
    Config,
    baseline_name,
    marl_datums,
    play_metrics,
    seating,
    sides_of,
    tokens_sampled,
    train,
)

# %% [markdown]
# Two moves, as good as each other, one of 1 nat and one of 3; the mean is 2. At 0.1 a nat the
# greater surprise is paid 0.1, and the smaller one costs as much. (The weights below are halved, as
# there are two sides.)

# %%
usual_move, rare_move = (Rollout([1], [2], [-nats], "", True) for nats in (1.0, 3.0))
moved = [Side((0, "nim", 0), 1.0, (move,)) for move in (usual_move, rare_move)]
weights = [d.loss_fn_inputs["advantages"].data[-1] for d in marl_datums(moved, [0.0, 0.0], 0.1)]
print("an advantage of 0, with surprise paid:", [round(weight, 3) for weight in weights])
assert np.allclose(weights, [-0.05, 0.05])

# %% [markdown]
# ### Before: the cold start
#
# A short SFT on games as people play them teaches the chat format and legal moves. They find the
# best move in a third of the cases, and else make any.

# %%
start_cfg = cold_start_config(world, seed=0)
student = service.create_lora_training_client(world.model, rank=world.rank, seed=0).result()
with progress("cold start", 0, start_cfg.steps, ["loss"]) as show:
    for step, metrics in enumerate(sft.train(student, world.demonstrations, start_cfg), 1):
        show(step, metrics)
checkpoint = student.save_state("marl-lesson-start", overwrite=True).result().path
start = student.save_weights_and_get_sampling_client().result()

# %% [markdown]
# ### The measures
#
# The policy announces its move and says no more, so its probability of each legal move is one
# score, without any sampling. Nim with two heaps is small enough to look at all of it: in each of
# the 42 positions where the move matters we take the probability of the best move. From 8 of them
# no game of ours starts, although one may pass through. In Kuhn poker the 12 positions give the
# whole strategy, and everything about it is exact.

# %%
test = world.test
unseen = np.array([position not in world.train for position in test])  # no game starts there
JACK, QUEEN = TEXTS[0], next(text for text in TEXTS if "card: Q. So far: bet." in text)


def look(sampler, step=0):
    """What a policy does in Kuhn poker, exactly."""
    bets, mass = kuhn_strategy(sampler, ask=ask)
    shown = {"bluffs": bets[JACK], "calls": bets[QUEEN], "mass": mass}
    return bets, {"step": step, "exploitability": exploitability(bets), **shown}


moves = {"SFT start": score_moves(start, test, ask)}
strategies = {"SFT start": [look(start)[0]]}  # of each policy, over time
print("SFT start, Nim:", moves["SFT start"])
print(f"{unseen.sum()} of {len(test)} positions are no starts")
print("SFT start, Kuhn poker:", {k: round(v, 3) for k, v in look(start)[1].items()})

# %% [markdown]
# ### A check before training
#
# A step at learning rate zero. Trainer and sampler are the same policy (`mismatch`), and what both
# seats won adds up to nothing: that sum is the reward of self-play, before training and after it.

# %%
cfg = marl_config(world, seed=0, rate=3e-4)
cfg = replace(cfg, steps=pick(scale, smoke=cfg.steps, laptop=32, full=cfg.steps))
policy = service.create_training_client_from_state(checkpoint).result()
first = next(train([policy], world.train, replace(cfg, learning_rate=0.0), ask=ask))
print({name: round(value, 4) for name, value in first.items()})
assert first["mismatch"] < 1e-3
assert first["first/seat0_return"] + first["first/seat1_return"] == 0


# %% [markdown]
# ## Training loop
#
# Every few steps we look at the strategy in Kuhn poker. That costs 24 scores, and trains nothing.
# The runs are shorter than those of the comparison over seeds.


# %%
def practise(label, cfg, **variant):
    """Train from the common start; keep metrics, strategies over time, and the final player."""
    policy = service.create_training_client_from_state(checkpoint).result()
    strategies[label], tracks[label] = [strategies["SFT start"][0]], [look(start)[1]]
    histories[label] = []
    with progress(label, 0, cfg.steps, ["first/optimal", "first/illegal"]) as show:
        for step, metrics in enumerate(train([policy], world.train, cfg, ask=ask, **variant), 1):
            histories[label].append({"step": step, **metrics})
            show(step, metrics)
            if step % LOOK == 0:
                now = policy.save_weights_and_get_sampling_client().result()
                bets, seen = look(now, step)
                strategies[label].append(bets)
                tracks[label].append(seen)
    samplers[label] = policy.save_weights_and_get_sampling_client().result()
    moves[label] = score_moves(samplers[label], test, ask)
    print(f"{label}, Nim: {moves[label]}")


LOOK = pick(scale, smoke=1, laptop=4, full=10)
samplers = {"SFT start": start}
histories: dict[str, list[dict[str, float]]] = {}
tracks: dict[str, list[dict[str, float]]] = {}  # what `look` saw
practise("self-play", cfg)

# %% [markdown]
# ### The control at equal budget: an opponent that never changes
#
# As many games, in as many steps, against a player who moves at random. Against others only one
# side of each game is ours, so half as many moves are trained on: that is the price of an opponent.
# (Against best play, which nobody has where self-play is needed, see `results.json`.)

# %%
practise("random opponent", cfg, opponent=against(lambda step: uniform(seed=step)))

# %% [markdown]
# ## Results
#
# ### After: best moves of Nim
#
# The probability of the best move where the move matters, with intervals from resampling positions.

# %%
estimates(
    {name: bootstrap_mean(shown.best) for name, shown in moves.items()},
    title="Nim", xlabel="probability of a best move",
)  # fmt: skip

# %%
for name, shown in moves.items():
    print(f"{name:17} {shown}; where no game started {shown.best[unseen].mean():.1%}")

# %% [markdown]
# ### After: against others, seat by seat
#
# In Nim every game begins with one of these positions. The first to move can win there, so nobody
# beats best play from the second seat. In Kuhn poker the numbers are exact, and the first seat is
# worse: best play loses 1/18 chip a game there.


# %%
def player(name, seed=0):
    """A policy at a table."""
    return PolicyPlayer(samplers[name], world.max_tokens, seed, ask)


for name in ("SFT start", "self-play"):
    others = {"random": uniform(), "optimal": optimal(), "SFT start": player("SFT start", 1)}
    print(f"Nim, {name}, share of games won:")
    for other, found in duels(player(name), others, test, 1).items():
        first_seat, second_seat = ((1 + value) / 2 for value in found.seat_values)
        print(f"  from {other:10} first {first_seat:.2f}  second {second_seat:.2f}  "
              f"both {found.win}  illegal moves {found.illegal:.1%}")  # fmt: skip

# %%
known = {"random": dict.fromkeys(TEXTS, 0.5), "optimal": equilibrium(),
         "SFT start": strategies["SFT start"][0]}  # fmt: skip
for name in samplers:
    won = chips(strategies[name][-1], known)
    told = "  ".join(f"{other} {a:+.2f} {b:+.2f}" for other, (a, b) in won.items())
    print(f"Kuhn poker, {name:17} chips a game, first and second seat, from {told}")

# %% [markdown]
# Two positions where no game started, and the likeliest moves before and after.

# %%
from posttrain.lab.moves import move_probabilities

for position in [p for p in test if p not in world.train][:2]:
    print(f"\n{position.question}  best: {' '.join(position.best)}")
    for name in ("SFT start", "self-play"):
        shares = move_probabilities(samplers[name], [position.question], ask=ask)
        likely = sorted(shares[position.question].shares.items(), key=lambda pair: -pair[1])[:3]
        print(f"  {name:10} " + "  ".join(f"{move} {share:.2f}" for move, share in likely))

# %% [markdown]
# ### Reading the dashboard
#
# What self-play says of itself: what the seats win adds up to nothing, at every step. How a seat
# fares against the other one says who has the better of the game, not how well it is played.

# %%
history = histories["self-play"]
total = max(abs(line["first/seat0_return"] + line["first/seat1_return"]) for line in history)
print(f"largest sum of both seats' returns in {len(history)} steps: {total:.2f}")
curves({"self-play": [history]}, "first/seat0_return", title="The first seat", ylabel="return")

# %%
curves(
    {name: [lines] for name, lines in histories.items()}, "first/optimal",
    title="Best moves while practising, both games", ylabel="share of decisions",
)  # fmt: skip

# %% [markdown]
# ### Failure mode: going round in circles
#
# The same self-play, a little more than three times as fast, and with $\beta = 0$. In poker the
# best answer to a strategy is another one, and the best answer to that a third. A policy that
# learns to beat itself follows them, and the longer its steps, the further it overshoots.

# %%
fast = replace(cfg, learning_rate=1e-3, entropy=0.0)
practise("too fast", fast)

# %% [markdown]
# An opponent pool is meant to help: each step draws one of the frozen snapshots of what the policy
# was. This is fictitious self-play
# ([Heinrich et al. 2015](https://proceedings.mlr.press/v37/heinrich15.html)) in its simplest form:
# who must do well against everything that it was cannot run away from its past.

# %% tags=["inline"]
from posttrain.methods.players import PastSelves

# %%
pool = PastSelves(every=EVERY, size=POOL, max_tokens=world.max_tokens, ask=ask)
practise("too fast, past selves", fast, opponent=pool)

# %% [markdown]
# Two decisions show the circles: how often it bluffs, and how often it calls. Bluffing pays against
# who folds, calling pays against who bluffs, and not bluffing against who calls.

# %%
circling = {name: [tracks[name]] for name in ("self-play", "too fast", "too fast, past selves")}
curves(circling, "bluffs", title="Bets with the jack, first to move", ylabel="probability")

# %%
curves(circling, "calls", title="Calls a bet with the queen", ylabel="probability")

# %%
curves(circling, "exploitability", title="Kuhn poker", ylabel="chips a game to a best response")

# %%
entropies = {name: [histories[name]] for name in circling}
curves(entropies, "first/entropy", title="Entropy while practising", ylabel="nats a token")

# %% [markdown]
# The circles are wide, and the pool does not end them: it learns the best answer to an average, and
# with steps as long as these it runs past that too. At the slower rate as well, who met its past
# selves was further from equilibrium than self-play after as many steps (`results.json`).
#
# But what one strategy loses when it goes astray, all of them together may still know. A mixture of
# past selves draws one of them for each game; it is a strategy as well, and its exploitability is
# exact too. This is what fictitious play converges with: the average, not the last one. It forgets
# slowly, though: what was bad for long stays in it for long.

# %%
averages = {
    name: [[
        {"step": line["step"], "exploitability": exploitability(mixture(strategies[name][: i + 1]))}
        for i, line in enumerate(tracks[name])
    ]]
    for name in circling
}  # fmt: skip
curves(
    {"too fast, as it is": circling["too fast"],
     "too fast, all it was": averages["too fast"],
     "past selves, all it was": averages["too fast, past selves"]},
    "exploitability", title="Last against average", ylabel="chips a game to a best response",
)  # fmt: skip

# %%
for name in ("too fast", "too fast, past selves"):
    print(f"{name:22} Nim: {moves[name]}")

# %% [markdown]
# ### Role baselines, or one for all
#
# The same self-play with one baseline for both games and both seats. The objective is the same.

# %%
short = replace(cfg, steps=pick(scale, smoke=1, laptop=8, full=40))
practise("one baseline", short, advantages=shared_advantages)
roles = {name: [histories[name][: short.steps]] for name in ("self-play", "one baseline")}
curves(roles, "first/optimal", title="Best moves while practising", ylabel="share of decisions")

# %% [markdown]
# ### Two policies that share nothing
#
# The same loop takes two policies, which play each other. Each has its own baselines, and learns
# from its own moves alone.

# %%
both = [service.create_training_client_from_state(checkpoint).result() for _ in range(2)]
for step, metrics in enumerate(train(both, world.train, short, ask=ask), 1):
    if step == short.steps:
        print({name: round(value, 3) for name, value in metrics.items() if "optimal" in name})
for name, policy in zip(("one", "the other"), both, strict=True):
    samplers[name] = policy.save_weights_and_get_sampling_client().result()
    print(f"{name:10} Nim: {score_moves(samplers[name], test, ask)}")
meeting = duels(player("one"), {"the other": player("the other", 1)}, test, 1)
print(f"one against the other: {meeting['the other']}")

# %% [markdown]
# ## Key observations
#
# `results.json` holds the comparison over several seeds (`posttrain run marl --seeds 5 --record`).

# %%
import json

first_found, last_found = (moves[name].best.mean() for name in ("SFT start", "self-play"))
print(f"This run: best moves of Nim {first_found:.3f} -> {last_found:.3f}")
for name, seen in tracks.items():
    print(f"          Kuhn poker, {name}: exploitable by {seen[0]['exploitability']:.3f} -> "
          f"{seen[-1]['exploitability']:.3f} chips a game")  # fmt: skip
recorded = Path("results.json")
for claim in json.loads(recorded.read_text())["claims"] if recorded.exists() else []:
    low, high = claim["ci95"]
    print(f"{claim['claim']}: {claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"{claim['n_seeds']} seeds")  # fmt: skip

# %% [markdown]
# **When to use it.** Use self-play where two sides meet, the rules decide who has won, and nobody
# can tell what would have been right: if a solver can, imitate it or verify against it. Measure
# against players that do not change, because its own reward says nothing. Where the best strategy
# is a mixture, as in poker, do not trust the last policy: take small steps, measure how far it can
# be exploited, and keep what it was, because the average of all that is safer than the last.

"""The arms of the multi-agent lesson: a cold start, self-play from it, and other opponents.

All arms play as many games in as many steps; they differ in whom the policy meets, in what a
return is compared with, and in whether a move is paid for its surprise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import tinker

from posttrain.lab import games, moves
from posttrain.lab.arms.rlvr import FULL_RL, cold_start_config, shared_start
from posttrain.lab.compare import Claim, Experiment, Headline, Trained, at_rate
from posttrain.lab.games import ask_of, on_games
from posttrain.lab.stage import Stage, run_stage
from posttrain.lab.worlds import World
from posttrain.methods import marl, players, sft
from posttrain.methods.players import Opponent, PastSelves, against
from posttrain.requests import item_seed
from posttrain.runs import Metrics, Run
from posttrain.scale import pick
from posttrain.tasks.games.players import optimal, uniform

EVERY = 5  # steps between checkpoints, and between the snapshots of the pool
POOL = 16  # snapshots

Snapshots = Mapping[int, tinker.SamplingClient]  # by step
# (world, seed, what the policy was, if its run is resumed) -> whom it meets; None is itself
Meeting = Callable[[World, int, Snapshots], Opponent | None]


def marl_config(
    world: World, seed: int, rate: float | None = None, entropy: float = marl.Config.entropy
) -> marl.Config:
    """The configuration of the lesson at the world's scale."""
    cfg = marl.Config(
        steps=world.steps(smoke=2, laptop=60, full=200),
        games=pick(world.scale, smoke=4, laptop=64, full=128),
        max_tokens=world.max_tokens,
        entropy=entropy,
        seed=seed,
    )
    return at_rate(cfg, world, rate, full=FULL_RL)


def itself(world: World, seed: int, snapshots: Snapshots) -> Opponent | None:
    """Self-play: the same policy in both seats."""
    return None


def past_selves(world: World, seed: int, snapshots: Snapshots) -> Opponent | None:
    """A pool of what the policy was."""
    return PastSelves(
        every=EVERY, size=POOL, max_tokens=world.max_tokens, seed=seed, ask=ask_of(world),
        snapshots=snapshots,
    )  # fmt: skip


def random_play(world: World, seed: int, snapshots: Snapshots) -> Opponent | None:
    """Legal moves, drawn at random."""
    return against(lambda step: uniform(seed=item_seed(seed, step)))


def best_play(world: World, seed: int, snapshots: Snapshots) -> Opponent | None:
    """The exact solution."""
    return against(lambda step: optimal(seed=item_seed(seed, step)))


def snapshots_of(service: tinker.ServiceClient, start: Stage, run: Run) -> Snapshots:
    """What the policy of a run was at the start, and at its checkpoints so far."""
    found = {}
    for step, path in ({0: start.checkpoint} | run.checkpoints).items():
        policy = service.create_training_client_from_state(path).result()
        found[step] = policy.save_weights_and_get_sampling_client().result()
    return found


def practise(
    service: tinker.ServiceClient,
    world: World,
    folder: Path,
    seed: int,
    *,
    rate: float | None = None,
    entropy: float = marl.Config.entropy,
    meeting: Meeting = itself,
    advantages: marl.Advantages = marl.role_advantages,
) -> Trained:
    """Cold start, then games with whom `meeting` says."""
    ask, first = ask_of(world), shared_start(service, world, folder, seed)
    cfg = marl_config(world, seed, rate, entropy)

    def steps(policy: tinker.TrainingClient, at: int) -> Iterator[Metrics]:
        run = Run.found(folder)
        opponent = meeting(world, seed, snapshots_of(service, first, run) if at else {})
        baselines = marl.baselines_in(run.metrics()[-1]) if at else {}
        yield from marl.train(
            [policy], world.train, cfg,
            opponent=opponent, advantages=advantages, ask=ask, baselines=baselines, start=at,
        )  # fmt: skip

    stage = run_stage(
        service, world, folder, steps, cfg, start=first.checkpoint,
        extra={"meeting": meeting.__name__, "advantages": advantages.__name__},
        show=("first/optimal", "first/illegal", "first/entropy"), every=EVERY,
    )  # fmt: skip
    total = first.cost(world.parameters) + stage.cost(world.parameters)
    past = snapshots_of(service, first, Run.found(folder))
    return Trained(stage, total, past=list(past.values())[:-1])  # the last one is what it is now


def start_only(service: tinker.ServiceClient, world: World, folder: Path, seed: int) -> Trained:
    """The cold start itself: where all begin."""
    ask_of(world)
    first = shared_start(service, world, folder, seed)
    return Trained(first, first.cost(world.parameters), past=[first.sampler])


EXPERIMENT = Experiment(
    name="methods/marl",
    arms={
        "SFT start": start_only,
        "self-play": partial(practise, rate=3e-4),
        "one baseline": partial(practise, rate=3e-4, advantages=marl.shared_advantages),
        "unpaid surprise": partial(practise, rate=3e-4, entropy=0.0),
        "past selves": partial(practise, rate=3e-4, meeting=past_selves),
        "random opponent": partial(practise, rate=1e-4, meeting=random_play),
        "optimal opponent": partial(practise, rate=1e-4, meeting=best_play),
    },
    claims=[
        Claim("Self-play finds more best moves of Nim than the policy it starts from",
              "self-play", "SFT start", "nim/optimal"),
        Claim("Self-play finds more of them than practice against a random player",
              "self-play", "random opponent", "nim/optimal"),
        Claim("Self-play finds more of them with a baseline for each role than with one for all",
              "self-play", "one baseline", "nim/optimal"),
        Claim("Self-play finds more of them where none of its games started too",
              "self-play", "SFT start", "nim/unseen"),
        Claim("Self-play leaves less to exploit at poker than there was at the start",
              "self-play", "SFT start", "kuhn/exploitability"),
        Claim("Where surprise is not paid, self-play leaves more to exploit",
              "unpaid surprise", "self-play", "kuhn/exploitability"),
        Claim("Who meets its past selves leaves less to exploit than who meets only itself",
              "past selves", "self-play", "kuhn/exploitability"),
    ],
    # Variants of self-play take its rate, and the other opponent that of the random one.
    rates={"self-play": (1e-4, 3e-4, 1e-3), "random opponent": (1e-4, 3e-4, 1e-3)},
    headline=Headline("SFT start", "self-play", "random opponent", "nim/optimal"),
    configs=lambda world: {
        "cold start": asdict(cold_start_config(world, 0)),
        "marl": asdict(marl_config(world, 0)),
    },
    sources=[marl, players, sft, games, moves, sys.modules[__name__]],
    measure=on_games,
    chosen_by=("nim/optimal",),
    tasks=("games", "games"),
)  # fmt: skip

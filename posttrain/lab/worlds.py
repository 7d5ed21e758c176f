"""What an experiment works with at each scale: model, problems, sizes.

At smoke and laptop scale that is the shipped base model and a generated task, such as `math` or
`stories`; at full scale a hosted model and published data (GSM8K, UltraFeedback). Everything that
depends on the scale is here or in a method's `Config`, so experiments are written once.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from posttrain.connect import shipped_models
from posttrain.lab.models import (
    HOSTED,
    INSTRUCT,
    JUDGE,
    SHIPPED,
    SHIPPED_JUDGE,
    SHIPPED_TEACHER,
    TEACHER,
)
from posttrain.methods.players import Ask, as_is, with_rules
from posttrain.renderers import Renderer, plain_renderer, renderer_for
from posttrain.rollouts import Play, answer, converse
from posttrain.scale import Scale, pick
from posttrain.tasks import (
    code,
    code_corpus,
    continual,
    games,
    gsm8k,
    human,
    math,
    no_robots,
    stories,
    tools,
    tools_corpus,
    ultrafeedback,
)
from posttrain.tasks.calculator import Calculator
from posttrain.tasks.problem import Demonstration, Preference, Problem


@dataclass(frozen=True)
class World:
    """One task at one scale.

    Raises:
        ValueError: a demonstration has an empty answer: to imitate it is to say nothing.
    """

    scale: Scale
    task: str
    model: str  # a base model of the backend
    rank: int  # of the LoRA adapters
    k: int  # samples per problem in an evaluation
    max_tokens: int  # of an answer
    demonstrations: Sequence[Demonstration]  # as people write them, mistakes and all
    train: Sequence[Any]  # items; problems where answers are right or wrong
    validation: Sequence[Any]
    test: Sequence[Any]
    ood: Sequence[Any]  # longer than, or unlike, anything trained on; empty where there is none
    effort: float = 1.0  # share of the usual optimizer steps; sweeps take less
    play: Play = answer  # how problems are put to the policy
    preferences: Sequence[Preference] = ()  # about training items, between two people's answers
    judge: str | None = None  # a model that judges criteria, or compares where nobody else does
    teacher: str | None = None  # a better model with the same tokenizer, to learn from
    renderer: Callable[[Any], Renderer] = renderer_for  # of a tokenizer: the format to ask in
    before: World | None = None  # the skill that is taught first, where one is to be kept

    def __post_init__(self) -> None:
        for i, shown in enumerate(self.demonstrations):
            if not shown.answer.strip():
                raise ValueError(f"demonstration {i} ({shown.question[:60]!r}) is empty")

    @property
    def graded(self) -> bool:
        """Whether answers are right or wrong: its items are problems."""
        return all(hasattr(item, "grade") for item in self.test[:1])

    @property
    def parameters(self) -> int:
        """Of the model, for FLOP counts."""
        return parameters_of(self.model)

    def prompt(self, tokenizer: Any, question: str) -> list[int]:
        """The tokens of a question in this world's format, up to the answer."""
        return self.renderer(tokenizer).prompt(question)

    def steps(self, *, smoke: int, laptop: int, full: int) -> int:
        """Optimizer steps at this scale and effort, at least one."""
        return max(1, round(self.effort * pick(self.scale, smoke=smoke, laptop=laptop, full=full)))


def parameters_of(model: str) -> int:
    """Of a shipped model, for FLOP counts; 0 of another, which is not at hand."""
    directory = shipped_models().get(model)
    if directory is None:
        return 0
    return int(json.loads((directory / "training.json").read_text())["parameters"])


def math_world(scale: Scale, seed: int = 0) -> World:
    """The generated task. `seed` picks training problems; validation and test stay the same."""
    count = partial(pick, scale)
    held_out = count(smoke=12, laptop=500, full=500)
    return World(
        scale=scale,
        task="math",
        model=count(smoke=SHIPPED, laptop=SHIPPED, full=HOSTED),
        rank=count(smoke=8, laptop=16, full=32),
        k=count(smoke=4, laptop=16, full=16),
        max_tokens=count(smoke=64, laptop=160, full=160),
        demonstrations=by_people(
            math.problems("train", count(smoke=64, laptop=500, full=500), seed=seed), seed
        ),
        train=math.problems("train", count(smoke=32, laptop=2000, full=2000), seed=seed + 1000),
        validation=math.problems("validation", min(held_out, 200)),
        test=math.problems("test", held_out),
        ood=math.problems("ood", held_out),
        teacher=count(smoke=SHIPPED_TEACHER, laptop=SHIPPED_TEACHER, full=TEACHER),
    )


def code_world(scale: Scale, seed: int = 0) -> World:
    """Programs in a small stack language. Demonstrations are by people with misconceptions, of
    whom some write the shown tests down as a table."""
    world = math_world(scale, seed)
    problems, n = code.problems, len(world.demonstrations)
    rng = random.Random(seed)
    shown = [
        Demonstration(p.question, code_corpus.answer(p, code_corpus.author(rng)))
        for p in problems("train", n, seed=seed)
    ]
    return replace(_generated(world, problems, seed), task="code", demonstrations=shown)


def tools_world(scale: Scale, seed: int = 0) -> World:
    """Sums with a calculator, in conversations. Demonstrations are by people who call always,
    never, or where it helps, and make well-formed calls: how a malformed one ends is not shown."""
    world = math_world(scale, seed)
    problems, n = tools.problems, len(world.demonstrations)
    rng, mixture = random.Random(seed), tools_corpus.Mixture(malformed=0.0)
    told = [tools_corpus.told(p, rng, mixture) for p in problems("train", n, seed=seed)]
    shown = [
        Demonstration(t.problem.question, t.text, tuple(x.text for x in t.turns)) for t in told
    ]
    play = partial(converse, start=Calculator, marks=[tools.STOP])
    return replace(
        _generated(world, problems, seed), task="tools", demonstrations=shown, play=play
    )  # fmt: skip


def _generated(world: World, problems: Callable[..., Sequence[Problem]], seed: int) -> World:
    """As many problems of another generated task as `world` has in each split."""
    return replace(
        world,
        train=problems("train", len(world.train), seed=seed + 1000),
        validation=problems("validation", len(world.validation)),
        test=problems("test", len(world.test)),
        ood=problems("ood", len(world.ood)),
    )


def gsm8k_world(scale: Scale, seed: int = 0) -> World:
    """GSM8K, for real models: from the hub, or from the file POSTTRAIN_GSM8K names."""
    count = partial(pick, scale)
    path = os.environ.get("POSTTRAIN_GSM8K")
    train = gsm8k.load("train", count(smoke=32, laptop=2000, full=None), path=path)
    return World(
        scale=scale,
        task="gsm8k",
        model=count(smoke=SHIPPED, laptop=SHIPPED, full=HOSTED),
        rank=count(smoke=8, laptop=16, full=32),
        k=count(smoke=4, laptop=4, full=16),
        max_tokens=count(smoke=32, laptop=160, full=1024),
        demonstrations=worked(train[: count(smoke=16, laptop=256, full=512)]),
        train=train,
        validation=gsm8k.load("validation", count(smoke=12, laptop=100, full=500), path=path),
        test=gsm8k.load("test", count(smoke=12, laptop=100, full=None), path=path),
        ood=[],
        teacher=count(smoke=SHIPPED_TEACHER, laptop=SHIPPED_TEACHER, full=TEACHER),
    )


def stories_world(scale: Scale, seed: int = 0) -> World:
    """Stories on request, and people who compare them. `seed` picks what is trained on."""
    count = partial(pick, scale)
    held_out = count(smoke=8, laptop=500, full=500)
    train = stories.stories("train", count(smoke=16, laptop=512, full=2000), seed=seed + 1000)
    shown = stories.stories("train", count(smoke=64, laptop=500, full=500), seed=seed)
    return World(
        scale=scale,
        task="stories",
        model=count(smoke=SHIPPED, laptop=SHIPPED, full=HOSTED),
        rank=count(smoke=8, laptop=16, full=32),
        k=2,
        max_tokens=count(smoke=48, laptop=160, full=160),
        demonstrations=[
            Demonstration(request.question, text)
            for request, (text,) in zip(shown, told_by_people(shown, seed, 1), strict=True)
        ],
        train=train,
        validation=stories.stories("validation", min(held_out, 200)),
        test=stories.stories("test", held_out),
        ood=stories.stories("ood", held_out),
        preferences=[
            preference
            for request, texts in zip(train, told_by_people(train, seed, 2), strict=True)
            for preference in human.preferences(request, texts, seed)
        ],
    )


def rubrics_world(scale: Scale, seed: int = 0) -> World:
    """The same stories, and a model that judges them by the criteria of their requests. Rubrics
    exist for generated tasks only, so at full scale hosted models write and judge these stories.

    One answer to each of fewer items: a judge reads a text once for every criterion.
    """
    count = partial(pick, scale)
    world = stories_world(scale, seed)
    return replace(
        world,
        task="rubrics",
        k=1,
        validation=world.validation[: count(smoke=4, laptop=100, full=200)],
        test=world.test[: count(smoke=4, laptop=120, full=500)],
        ood=(),
        preferences=(),
        judge=count(smoke=SHIPPED_JUDGE, laptop=SHIPPED_JUDGE, full=JUDGE),
    )


def ultrafeedback_world(scale: Scale, seed: int = 0) -> World:
    """UltraFeedback, for real models, after a start on No Robots, which people wrote.

    Both from the hub, or from the files POSTTRAIN_ULTRAFEEDBACK and POSTTRAIN_NO_ROBOTS name. The
    training data are the same for every seed: the seed orders them.
    """
    count = partial(pick, scale)
    pairs = partial(ultrafeedback.load, path=os.environ.get("POSTTRAIN_ULTRAFEEDBACK"))
    preferences = pairs("train", count(smoke=16, laptop=512, full=10_000))
    robots = os.environ.get("POSTTRAIN_NO_ROBOTS")
    return World(
        scale=scale,
        task="ultrafeedback",
        model=count(smoke=SHIPPED, laptop=SHIPPED, full=HOSTED),
        rank=count(smoke=8, laptop=16, full=32),
        k=1,
        max_tokens=count(smoke=32, laptop=160, full=1024),
        demonstrations=no_robots.load("train", count(smoke=16, laptop=256, full=2000), path=robots),
        train=ultrafeedback.prompts(preferences),
        validation=ultrafeedback.prompts(pairs("validation", count(smoke=8, laptop=100, full=200))),
        test=ultrafeedback.prompts(pairs("test", count(smoke=8, laptop=100, full=500))),
        ood=[],
        preferences=preferences,
        judge=count(smoke=SHIPPED, laptop=SHIPPED, full=JUDGE),
    )


def continual_world(scale: Scale, seed: int = 0) -> World:
    """Cards, to be learned after ledgers, which are to be kept. Both are asked in the plain form:
    there the base has learned to follow examples, and in no other."""
    count = partial(pick, scale)
    held_out = count(smoke=4, laptop=250, full=500)
    new = replace(
        math_world(scale, seed),
        task="continual",
        k=count(smoke=1, laptop=2, full=2),
        max_tokens=count(smoke=32, laptop=48, full=48),
        demonstrations=(),
        train=continual.cards("train", count(smoke=16, laptop=500, full=500), seed=seed + 1000),
        validation=continual.cards("validation", min(held_out, 100)),
        test=continual.cards("test", held_out),
        ood=(),
        renderer=plain_renderer,
    )
    ledgers = partial(continual.ledgers, steps=(1, 3))
    old = replace(
        new,
        task="ledgers",
        max_tokens=count(smoke=16, laptop=80, full=80),
        train=ledgers("train", count(smoke=16, laptop=2000, full=2000), seed=seed),
        validation=ledgers("validation", min(held_out, 100)),
        test=ledgers("test", held_out),
    )
    return replace(new, before=old)


def gsm8k_records_world(scale: Scale, seed: int = 0) -> World:
    """The same for a real model, asked in its chat format: records after GSM8K."""
    new, old = continual_world(scale, seed), gsm8k_world(scale, seed)
    model = pick(scale, smoke=SHIPPED, laptop=SHIPPED, full=INSTRUCT)
    old = replace(old, model=model, k=new.k, test=old.test[: len(new.test)])
    return replace(new, task="gsm8k-records", model=model, renderer=renderer_for, before=old)


def games_world(scale: Scale, seed: int = 0) -> World:
    """Nim of two heaps, and Kuhn poker. Demonstrations are moves of games between people who mostly
    play badly; `train` are starts of games, of each game half.

    The test is the whole of Nim with two heaps: every position where the move matters. From 8 of
    the 42 no game starts; the 34 others are the validation, so a learning rate is chosen by what
    is practised. At full scale there are three heaps too, all splits are their own, and the rules
    stand before each position.
    """
    count = partial(pick, scale)
    small = scale is not Scale.FULL
    nim = partial(games.positions, "nim", level=(2, 2) if small else (2, 3))
    deals = games.positions("kuhn-poker", "train", 6, decisive=False)
    starts = count(smoke=12, laptop=41, full=240)  # 41 is all that there are
    heaps = nim("train", starts, seed=seed + 1000, decisive=False)
    heaps *= count(smoke=1, laptop=6, full=1)
    if small:
        validation = nim("train", 34)
        test = [*validation, *nim("validation", 8)]  # two heaps have no other split
    else:
        validation, test = nim("validation", 26), nim("test", 30)
    return World(
        scale=scale,
        task="games",
        model=count(smoke=SHIPPED, laptop=SHIPPED, full=HOSTED),
        rank=count(smoke=8, laptop=16, full=32),
        k=count(smoke=1, laptop=8, full=8),
        max_tokens=count(smoke=12, laptop=12, full=32),
        demonstrations=played_by_people(
            games.positions(
                "nim", "train", count(smoke=8, laptop=60, full=60),
                seed=seed, level=(2, 3), decisive=False,
            )
            + deals * count(smoke=1, laptop=10, full=10),
            seed,
            count(smoke=as_is, laptop=as_is, full=with_rules),
        ),
        train=[*heaps, *(deals * (len(heaps) // len(deals)))],
        validation=validation,
        test=test,
        ood=(),
    )  # fmt: skip


TASKS: dict[str, Callable[[Scale, int], World]] = {
    "math": math_world,
    "gsm8k": gsm8k_world,
    "code": code_world,
    "tools": tools_world,
    "stories": stories_world,
    "rubrics": rubrics_world,
    "ultrafeedback": ultrafeedback_world,
    "continual": continual_world,
    "gsm8k-records": gsm8k_records_world,
    "games": games_world,
}


def world_of(
    scale: Scale, task: str | None = None, seed: int = 0, model: str | None = None
) -> World:
    """The world of a task, by default `math`, and `gsm8k` at full scale.

    Args:
        seed: picks training problems; held-out ones are the same for every seed.
        model: a base model other than the scale's own.

    Raises:
        ValueError: an unknown task; the text lists the known ones.
    """
    name = task or pick(scale, smoke="math", laptop="math", full="gsm8k")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; the known ones are {', '.join(TASKS)}")
    world = TASKS[name](scale, seed)
    return world if model is None else replace(world, model=model)


def worked(problems: Sequence[Problem]) -> list[Demonstration]:
    """Demonstrations that show their work."""
    return [Demonstration(p.question, p.solution) for p in problems]


def by_people(problems: Sequence[math.MathProblem], seed: int) -> list[Demonstration]:
    """Demonstrations as people write them: each by somebody with misconceptions of their own."""
    rng = random.Random(seed)
    return [Demonstration(p.question, math.solve(p, math.solver(rng))) for p in problems]


def told_by_people(requests: Sequence[stories.Request], seed: int, texts: int) -> list[list[str]]:
    """`texts` stories for each request, each by somebody with flaws of their own."""
    rng = random.Random(seed)
    return [
        [stories.write(request, rng, stories.author(rng)) for _ in range(texts)]
        for request in requests
    ]


def played_by_people(starts: Sequence[games.Position], seed: int, ask: Ask) -> list[Demonstration]:
    """All moves of games between people, of whom each finds the best move with a probability of
    their own, 0.6 at most, and else makes any."""
    rng = random.Random(seed)
    people = [
        games.Expert(rng.random() * 0.6, seed=rng.getrandbits(32)) for _ in range(2 * len(starts))
    ]
    seats = [(2 * i, 2 * i + 1) for i in range(len(starts))]
    return [
        Demonstration(ask(turn.text), turn.completion)
        for match in games.play(starts, people, seats)
        for turn in match.turns
    ]


def bare(problems: Sequence[Any]) -> list[Demonstration]:
    """Demonstrations of the same problems that state the answer and nothing else."""
    return [Demonstration(p.question, p.bare_answer) for p in problems]

"""Measuring players: exact numbers for known ones, and a run that is resumed with its past."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from posttrain.lab.arms import marl as arms
from posttrain.lab.games import ask_of, chips, duels, score_moves
from posttrain.lab.worlds import world_of
from posttrain.methods import marl
from posttrain.runs import Metrics, Run
from posttrain.scale import Scale
from posttrain.tasks.games import game_of, optimal, read_move, uniform
from posttrain.tasks.games.kuhn import TEXTS, equilibrium

WORLD = world_of(Scale.LAPTOP, "games")


@dataclass
class Announcing:
    """A sampling client that announces moves with given probabilities.

    The whole log-probability stands on the last token, so any split into a prompt will do.
    """

    probabilities: Callable[[str], Mapping[str, float]]  # text of a position -> of its moves
    tokenizer: Any

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def compute_logprobs(self, prompt: tinker.ModelInput) -> Any:
        said = self.tokenizer.decode(prompt.to_ints(), skip_special_tokens=True)
        text = re.findall(r"(?:Nim|Kuhn).*Your move\?", said)[-1]
        p = self.probabilities(text).get(read_move(said.split("Your move?")[1]) or "", 0.0)
        return Done([None, *[0.0] * (prompt.length - 2), math.log(p) if p else -math.inf])


@dataclass
class Done:
    value: Any

    def result(self) -> Any:
        return self.value


def at_random(text: str) -> dict[str, float]:
    legal = game_of(text).legal(text)
    return dict.fromkeys(legal, 1 / len(legal))


def test_a_random_and_an_optimal_player_are_known_by_their_moves(
    base_service: tinker.ServiceClient,
) -> None:
    base = base_service.create_sampling_client(base_model="posttrain/base").result()
    asked = WORLD.test[:20]

    def scored(probabilities: Callable[[str], Mapping[str, float]]) -> Any:
        sampler: Any = Announcing(probabilities, base.get_tokenizer())
        return score_moves(sampler, asked)

    best = scored(lambda text: game_of(text).best(text))
    assert best.best.tolist() == pytest.approx([1.0] * 20)
    assert best.greedy.all()
    chance = scored(at_random)
    shares = [len(p.best) / len(p.legal) for p in asked]
    assert chance.best.tolist() == pytest.approx(shares)
    assert chance.legal.tolist() == pytest.approx([1.0] * 20)
    assert 0.05 < np.mean(shares) < 0.15
    mute = scored(lambda text: {move: p / 2 for move, p in at_random(text).items()})
    assert mute.best.tolist() == pytest.approx([share / 2 for share in shares])
    assert mute.legal.tolist() == pytest.approx([0.5] * 20)


def test_chips_of_known_strategies() -> None:
    """Equilibrium costs the first seat 1/18; of random play a bet is folded to in one game of four,
    and the first player folds in one of eight, and the rest is even."""
    chance = dict.fromkeys(TEXTS, 0.5)
    won = chips(equilibrium(), {"equilibrium": equilibrium(0.0), "random": chance})
    assert won["equilibrium"] == pytest.approx((-1 / 18, 1 / 18))
    assert min(won["random"]) > 0
    assert chips(chance, {"itself": chance})["itself"] == pytest.approx((1 / 8, -1 / 8))


def test_duels_from_positions_that_the_first_seat_wins() -> None:
    """Where the move matters, best play in the first seat wins whoever is in the second."""
    starts = WORLD.test[:20]
    found = duels(optimal(), {"optimal": optimal(seed=1), "random": uniform()}, starts, 3)
    assert found["optimal"].seat_values == (1.0, -1.0)
    assert found["random"].seat_values[0] == 1.0
    assert found["random"].n == 60


def test_the_test_is_all_of_nim_with_two_heaps_and_from_some_of_it_no_game_starts() -> None:
    heaps = range(1, 8)
    decisive = {(a, b) for a in heaps for b in heaps if a != b}  # alike, every move loses
    assert {p.setup for p in WORLD.test} == decisive
    assert len(WORLD.test) == len(decisive) == 42
    begun = {p.game.family(p.setup) for p in WORLD.train if p.name == "nim"}
    unseen = [p for p in WORLD.test if p not in WORLD.train]
    assert len(unseen) == 8
    assert not begun & {p.game.family(p.setup) for p in unseen}
    assert [p for p in WORLD.test if p in WORLD.train] == list(WORLD.validation)


def test_at_full_scale_positions_are_held_out() -> None:
    full = world_of(Scale.FULL, "games")
    begun = {p.game.family(p.setup) for p in full.train if p.name == "nim"}
    assert not begun & {p.game.family(p.setup) for p in [*full.test, *full.validation]}


def test_half_of_the_starts_are_nim_and_people_play_badly() -> None:
    assert {p.name for p in WORLD.train} == {"nim", "kuhn-poker"}
    assert sum(p.name == "nim" for p in WORLD.train) == len(WORLD.train) / 2
    matters = [d for d in WORLD.demonstrations if (g := game_of(d.question)).best(d.question)
               and len(g.best(d.question)) < len(g.legal(d.question))]  # fmt: skip
    right = [read_move(d.answer) in game_of(d.question).best(d.question) for d in matters]
    assert 0.3 < np.mean(right) < 0.7
    told = world_of(Scale.FULL, "games").demonstrations[0].question
    assert told.startswith("Take any number of objects from one heap.")


def test_a_resumed_run_meets_the_same_past_selves(
    base_service: tinker.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after three of four steps: the fourth has the same games, to the last number."""
    whole = marl.train
    monkeypatch.setattr(arms, "EVERY", 1)
    world = world_of(Scale.SMOKE, "games")
    world = replace(world, effort=2.0)

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Metrics]:
        steps = whole(*args, **kwargs)
        for _ in range(3):
            yield next(steps)
        raise KeyboardInterrupt

    def practise(folder: str) -> Any:
        return arms.practise(
            base_service, world, tmp_path / folder, 3, rate=1e-3, meeting=arms.past_selves
        )

    through = practise("through").stage.metrics
    monkeypatch.setattr(marl, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        practise("resumed")
    monkeypatch.setattr(marl, "train", whole)
    run = Run.found(tmp_path / "resumed")
    assert (run.step, [*run.checkpoints]) == (3, [1, 2, 3])
    resumed = practise("resumed").stage.metrics
    assert len(resumed) == 4
    for one, other in zip(through, resumed, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_only_games_have_two_players() -> None:
    with pytest.raises(ValueError, match="two players need games; the task 'math' is none"):
        ask_of(world_of(Scale.SMOKE, "math"))
    full = world_of(Scale.FULL, "games")
    asked = ask_of(full)("Nim. Heaps: A3 B4. Your move?")
    assert asked.startswith("Take any number of objects from one heap.")

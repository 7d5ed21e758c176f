"""Self-play: who is trained on what, exact gradients of poker, a known optimum, learning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.lab.moves import kuhn_exploitability, move_probabilities
from posttrain.methods import sft
from posttrain.methods.marl import (
    Config,
    Side,
    baseline_name,
    baselines_in,
    marl_datums,
    role_advantages,
    seating,
    shared_advantages,
    sides_of,
    train,
)
from posttrain.methods.players import PastSelves, PolicyPlayer, against, with_rules
from posttrain.rollouts import Rollout
from posttrain.tasks.games import Expert, Match, Position, optimal, play, positions, uniform
from posttrain.tasks.games.duel import duel
from posttrain.tasks.games.game import announce
from posttrain.tasks.games.kuhn import MOVES, TEXTS, equilibrium
from posttrain.tasks.problem import Demonstration


@dataclass
class Remembering:
    """An imperfect player that keeps a rollout of each answer, numbered, as a policy does."""

    expert: Expert
    rollouts: list[Rollout] = field(default_factory=list)

    def moves(self, texts: Sequence[str]) -> list[str]:
        said = self.expert.moves(texts)
        said = ["Move: Z9." if text.endswith("A1.") else text for text in said]  # some are illegal
        for text in said:
            number = len(self.rollouts)
            self.rollouts.append(Rollout([1], [number], [-1.0], text, True))
        return said


@given(st.integers(0, 1000), st.lists(st.sampled_from([(0, 1), (1, 0), (0, 0), (1, 1)]),
                                      min_size=1, max_size=12))  # fmt: skip
def test_every_rollout_finds_the_side_that_made_it(seed: int, seats: list[tuple[int, int]]) -> None:
    """Each side holds the completions of its own turns, in order, and each rollout just once."""
    starts = [
        Position("nim", (2, 3)) if (seed + i) % 2 else Position("kuhn-poker", (0, 2))
        for i in range(len(seats))
    ]
    players = [Remembering(uniform(seed=seed)), Remembering(uniform(seed=seed + 1))]
    matches = play(starts, players, seats)
    for number, player in enumerate(players):
        sides = iter(sides_of(matches, number, player.rollouts))
        used: list[int] = []
        for match in matches:
            for seat in (0, 1):
                if match.seats[seat] != number:
                    continue
                side = next(sides)
                assert side.role == (number, match.start.name, seat)
                assert side.reward == match.returns[seat]
                mine = [turn.completion for turn in match.turns_of(seat)]
                assert [rollout.text for rollout in side.rollouts] == mine
                used += [rollout.tokens[0] for rollout in side.rollouts]
        assert sorted(used) == list(range(len(player.rollouts)))


def test_rollouts_of_somebody_else_are_refused() -> None:
    player = Remembering(uniform())
    matches = play([Position("nim", (2, 3))], [player], [(0, 0)])
    with pytest.raises(ValueError, match="turn 0 of game 0 is no rollout of this player"):
        sides_of(matches, 0, player.rollouts[1:])
    with pytest.raises(ValueError, match="more rollouts than turns"):
        sides_of(matches, 0, [*player.rollouts, player.rollouts[0]])


def side(game: str, seat: int, reward: float) -> Side:
    return Side((0, game, seat), reward, (Rollout([1, 2], [3, 4], [-1.0, -1.0], "", True),))


def test_role_baselines_by_hand() -> None:
    sides = [side("nim", 0, 1.0), side("nim", 1, -1.0), side("nim", 0, 1.0), side("poker", 0, 2.0)]
    advantages, after = role_advantages(sides, {(0, "nim", 1): -0.5}, decay=0.9)
    assert advantages == [1.0, -0.5, 1.0, 2.0]  # with the baselines from before
    assert after[0, "nim", 0] == pytest.approx(0.9 * 0.1 + 0.1)
    assert after[0, "nim", 1] == pytest.approx(0.9 * -0.5 - 0.1)
    assert after[0, "poker", 0] == pytest.approx(0.2)
    reported = {baseline_name(role): value for role, value in after.items()}
    assert baselines_in(reported | {"tokens": 3.0, "first/optimal": 0.5}) == after


def test_one_baseline_for_all_takes_the_seats_luck_for_skill() -> None:
    """In self-play the seats' returns cancel, so it stays near 0, whoever has the better of it."""
    kept: dict[Any, float] = {}
    for _ in range(200):
        sides = [side("nim", 0, 1.0), side("nim", 1, -1.0)]
        advantages, kept = shared_advantages(sides, kept, 0.9)
    assert [*kept] == [(0, "all", 0)]
    assert advantages == pytest.approx([1.0, -1.0], abs=0.1)


def test_a_seat_that_always_wins_ends_without_advantage() -> None:
    """What the first mover's luck brings is no merit: its baseline converges to it."""
    kept: dict[Any, float] = {}
    for _ in range(200):
        advantages, kept = role_advantages([side("nim", 0, 1.0), side("nim", 1, -1.0)], kept, 0.9)
    assert advantages == pytest.approx([0.0, 0.0], abs=1e-6)


def test_datums_hold_own_moves_alone_and_are_weighed_by_the_number_of_sides() -> None:
    data = marl_datums([side("nim", 0, 1.0), side("nim", 1, -1.0)], [1.0, 0.0])
    (datum,) = data
    assert datum.model_input.to_ints() == [1, 2, 3]
    assert datum.loss_fn_inputs["advantages"].to_torch().tolist() == [0.0, 0.5, 0.5]


def test_a_surprising_move_is_paid_for_it() -> None:
    """Moves of 1 and of 3 nats, the mean is 2; at 0.1 a nat one loses 0.1 and the other wins it."""
    sure, unsure = (Rollout([1], [2], [-nats], "", True) for nats in (1.0, 3.0))
    sides = [Side((0, "nim", 0), 1.0, (sure,)), Side((0, "nim", 1), -1.0, (unsure,))]
    data = marl_datums(sides, [0.5, 0.0], entropy=0.1)
    weights = [datum.loss_fn_inputs["advantages"].data[-1] for datum in data]
    assert weights == pytest.approx([(0.5 - 0.1) / 2, 0.1 / 2])
    assert len(marl_datums(sides, [0.5, 0.0])) == 1


def test_who_forfeits_pays_a_fine_and_nobody_gets_it() -> None:
    start = Position("nim", (2, 2))
    (match,) = play([start], [Reciting("A9")], [(0, 0)])
    rollouts = [Rollout([1], [2], [-1.0], announce("A9"), True)]
    assert [s.reward for s in sides_of([match], 0, rollouts)] == [-1.0, 1.0]
    assert [s.reward for s in sides_of([match], 0, rollouts, fine=0.5)] == [-1.5, 1.0]


# Kuhn poker, whole: 6 deals and 5 ways to play each, and a policy that is a table of logits.

DEALS = [(a, b) for a in range(3) for b in range(3) if a != b]
HISTORIES = ["pass pass", "pass bet pass", "pass bet bet", "bet pass", "bet bet"]


class Reciting:
    def __init__(self, script: str) -> None:
        self.left = script.split()

    def moves(self, texts: Sequence[str]) -> list[str]:
        return [announce(self.left.pop(0)) for _ in texts]


def recited(deal: tuple[int, ...], script: str, seats: tuple[int, int]) -> Match:
    player = Reciting(script)
    (match,) = play([Position("kuhn-poker", deal)], [player, player], [seats])
    return match


def token(text: str, move: str) -> int:
    return 2 * TEXTS.index(text) + MOVES.index(move)


def trained_tokens(match: Match, baselines: dict[Any, float]) -> list[tuple[int, float]]:
    """What the method would train on a game, as (text and move, weight), player 0 learning."""
    own = [turn for turn in match.turns if match.seats[turn.seat] == 0]
    rollouts = [Rollout([99], [token(t.text, str(t.move))], [0.0], t.completion, True) for t in own]
    sides = sides_of([match], 0, rollouts)
    advantages, _ = role_advantages(sides, baselines, 0.9)
    data = marl_datums(sides, advantages)
    return [
        (int(d.loss_fn_inputs["target_tokens"].data[-1]),
         float(d.loss_fn_inputs["advantages"].data[-1])) for d in data
    ]  # fmt: skip


@dataclass(frozen=True)
class Games:
    """All games of Kuhn poker with given seats, in rows; columns are the 24 texts with moves."""

    mine: Tensor  # (games, 24) how often player 0 makes this move here
    others: Tensor  # (games, 24) how often player 1 does
    weights: Tensor  # (games, 24) what the method trains it with
    returns: Tensor  # (games, 2) of each seat

    def chances(self, logprobs: Tensor, other: Tensor) -> Tensor:
        """(games,) probability of each, given (24,) log-probabilities; deals are equally likely."""
        return (self.mine @ logprobs + self.others @ other).exp() / len(DEALS)


def all_games(seats: tuple[int, int], baselines: dict[Any, float]) -> Games:
    rows: list[list[list[float]]] = []
    returns = []
    for deal, script in itertools.product(DEALS, HISTORIES):
        match = recited(deal, script, seats)
        row = [[0.0] * 24 for _ in range(3)]
        for turn in match.turns:
            row[match.seats[turn.seat]][token(turn.text, str(turn.move))] += 1
        for place, weight in trained_tokens(match, baselines):
            row[2][place] += weight
        rows.append(row)
        returns.append(match.returns)
    stacked = torch.tensor(rows, dtype=torch.float64)
    mine, others, weights = stacked.unbind(1)
    return Games(mine, others, weights, torch.tensor(returns, dtype=torch.float64))


def surrogate(games: Games, logprobs: Tensor, other: Tensor) -> Tensor:
    """The sum whose gradient is the method's, in expectation over all games."""
    return (games.chances(logprobs, other).detach() * (games.weights @ logprobs)).sum()


def table(logits: Tensor) -> Tensor:
    return logits.log_softmax(1).flatten()


def test_the_expected_gradient_of_self_play_is_that_of_both_seats_returns() -> None:
    """Whatever the baselines: against autograd through the exact value of each seat."""
    torch.manual_seed(0)
    logits = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    self_play = all_games((0, 0), {(0, "kuhn-poker", 0): 0.7, (0, "kuhn-poker", 1): -0.2})
    (found,) = torch.autograd.grad(surrogate(self_play, table(logits), table(logits)), logits)
    fixed, truth = table(logits).detach(), torch.zeros((), dtype=torch.float64)
    for seat, seats in enumerate([(0, 1), (1, 0)]):  # the seat that moves its parameters
        games = all_games(seats, {})
        truth = truth + games.chances(table(logits), fixed) @ games.returns[:, seat] / 2
    (expected,) = torch.autograd.grad(truth, logits)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_ascent_reaches_the_best_response_to_random_play() -> None:
    """11/24 chips a game, what random play loses to best responses; both seats are learned."""
    chance = table(torch.zeros(12, 2, dtype=torch.float64))
    both = [all_games(seats, {}) for seats in ((0, 1), (1, 0))]
    logits = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        (-torch.stack([surrogate(games, table(logits), chance) for games in both]).sum()).backward()
        optimizer.step()
    reached = sum(
        (games.chances(table(logits), chance) @ games.returns[:, seat]).item() / 2
        for seat, games in enumerate(both)
    )
    assert reached == pytest.approx(11 / 24, abs=5e-3)


# Measuring


def test_duels_with_known_ends() -> None:
    never = duel(optimal(seed=1), uniform(seed=2), [Position("tic-tac-toe", ())] * 30)
    assert never.loss.value == 0.0
    assert never.win.value > 0.7
    assert never.win.value + never.draw.value == pytest.approx(1.0)
    assert (never.optimal, never.illegal) == (1.0, 0.0)
    assert never.value.value == pytest.approx(never.win.value)
    drawn = duel(optimal(seed=1), optimal(seed=2), [Position("tic-tac-toe", ())] * 5)
    assert drawn.draw.value == 1.0
    nim = duel(optimal(), optimal(seed=3), [Position("nim", (1, 2)), Position("nim", (2, 2))])
    assert nim.values.tolist() == [0.0, 0.0]  # from each start the same seat wins both times
    assert nim.seat_values == (0.0, 0.0)
    with pytest.raises(ValueError, match="there is no start"):
        duel(optimal(), uniform(), [])


class Mute:
    def moves(self, texts: Sequence[str]) -> list[str]:
        return ["I would rather not."] * len(texts)


def test_who_makes_no_legal_move_loses() -> None:
    lost = duel(Mute(), uniform(), positions("nim", "train", 5, decisive=False))
    assert (lost.loss.value, lost.illegal, lost.seat_values) == (1.0, 1.0, (-1.0, -1.0))
    assert lost.to_json()["values"] == [-1.0] * 5


@dataclass
class Tabulated:
    """A sampling client that announces a bet in each poker position as often as it is told.

    The whole log-probability stands on the last token, so any split into a prompt will do.
    """

    bets: dict[str, float]
    mass: float  # of both announcements together
    tokenizer: Any

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def compute_logprobs(self, prompt: tinker.ModelInput) -> Any:
        said = self.tokenizer.decode(prompt.to_ints())
        (text,) = [text for text in TEXTS if text in said]
        p = self.mass * (self.bets[text] if "Move: bet." in said else 1 - self.bets[text])
        return Done([None, *[0.0] * (prompt.length - 2), math.log(p) if p else -math.inf])


@dataclass
class Done:
    value: Any

    def result(self) -> Any:
        return self.value


def test_exploitability_comes_from_the_scores_of_moves(service: tinker.ServiceClient) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()
    tokenizer = policy.get_tokenizer()
    for alpha in (0.0, 1 / 3):
        sampler: Any = Tabulated(equilibrium(alpha), 0.5, tokenizer)
        found, mass = kuhn_exploitability(sampler)
        assert found == pytest.approx(0.0, abs=1e-9)
        assert mass == pytest.approx(0.5)
    sampler = Tabulated(dict.fromkeys(TEXTS, 0.5), 1e-9, tokenizer)
    assert kuhn_exploitability(sampler)[0] == pytest.approx(11 / 24)
    # A real model: shares add up, and what is put in front of the position changes them.
    sampler = policy.save_weights_and_get_sampling_client().result()
    text = Position("nim", (3,)).question
    scored = [
        move_probabilities(sampler, [text], ask=ask)[text] for ask in (str, "Well? {}".format)
    ]
    for moves in scored:
        assert list(moves.shares) == ["A1", "A2", "A3"]
        assert sum(moves.shares.values()) == pytest.approx(1.0)
        assert 0 < moves.mass < 1e-3
    assert scored[0].mass != scored[1].mass


def test_rules_come_before_the_position() -> None:
    question = with_rules(Position("nim", (3,)).question)
    assert question.startswith("Take any number of objects from one heap.")
    assert question.endswith("Nim. Heaps: A3. Your move?")


# Opponents


def test_the_pool_holds_the_newest_snapshots_and_draws_from_all_of_them() -> None:
    pool = PastSelves(every=2, size=3, seed=1)
    met: dict[int, set[Any]] = {}
    for step in range(40):
        player = pool(step, f"weights {step}")  # type: ignore[arg-type]
        assert isinstance(player, PolicyPlayer)
        met.setdefault(step // 2, set()).add(player.sampler)
        newest = [*range(0, step + 1, 2)][-3:]
        assert player.sampler in [f"weights {at}" for at in newest]
        assert list(pool.snapshots) == newest
    assert len({step for steps in met.values() for step in steps}) > 10
    resumed = PastSelves(every=2, size=3, seed=1, snapshots={36: "weights 36", 38: "weights 38"})  # type: ignore[dict-item]
    again = resumed(40, "weights 40")  # type: ignore[arg-type]
    assert again.sampler == pool(40, "weights 40").sampler  # type: ignore[arg-type, attr-defined]
    with pytest.raises(ValueError, match=r"step 41 needs the snapshots of steps \[36, 38, 40\]"):
        PastSelves(every=2, size=3)(41, "weights 41")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every=0"):
        PastSelves(every=0)


def test_who_sits_where() -> None:
    assert seating(1, 2, 0) == [(0, 0), (0, 0)]
    assert seating(2, 3, 0) == [(0, 1), (1, 0), (0, 1)]
    assert seating(2, 3, 1) == [(1, 0), (0, 1), (1, 0)]


def test_two_policies_have_no_opponent() -> None:
    with pytest.raises(ValueError, match="2 policies and an opponent: one policy plays itself"):
        next(train([None, None], [], Config(), opponent=against(uniform_of)))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="0 policies"):
        next(train([], [], Config()))


def uniform_of(seed: int) -> Expert:
    return uniform(seed=seed)


# On the engine

NIM = [Position("nim", (2,)), Position("nim", (1, 1))]
SMALL = Config(games=16, max_tokens=12, steps=1, learning_rate=0.0)


@pytest.fixture(scope="module")
def beginner(base_service: tinker.ServiceClient) -> str:
    """A checkpoint that answers with legal moves of tiny Nim, good and bad ones."""
    policy = base_service.create_lora_training_client("posttrain/base", rank=8, seed=0).result()
    texts = ["Nim. Heaps: A2. Your move?", "Nim. Heaps: A1 B1. Your move?",
             "Nim. Heaps: A1. Your move?", "Nim. Heaps: B1. Your move?"]  # fmt: skip
    shown = [
        Demonstration(text, announce(move))
        for text in texts
        for move in Position("nim", (2, 2)).game.legal(text)
    ]
    list(sft.train(policy, shown, sft.Config(steps=15, batch_size=6, learning_rate=6e-3)))
    return policy.save_state("beginner", overwrite=True).result().path


def client(service: tinker.ServiceClient, checkpoint: str) -> tinker.TrainingClient:
    return service.create_training_client_from_state(checkpoint).result()


def test_self_play_learns_the_winning_move(
    base_service: tinker.ServiceClient, beginner: str
) -> None:
    """Take both of two: found by playing itself, without being told."""
    policy = client(base_service, beginner)
    text = NIM[0].question

    def take_both() -> float:
        sampler = policy.save_weights_and_get_sampling_client().result()
        return move_probabilities(sampler, [text])[text].shares["A2"]

    before = take_both()
    cfg = Config(games=32, max_tokens=12, steps=12, learning_rate=2e-3, fine=0.0, entropy=0.0)
    history = list(train([policy], NIM[:1], cfg))
    assert take_both() > before
    for metrics in history:
        assert metrics["mismatch"] < 1e-3
        assert metrics["first/seat0_return"] == -metrics["first/seat1_return"]  # zero-sum
        assert metrics["tokens"] > 0
        assert metrics["sampled_tokens"] > 0
    assert history[-1]["baseline/0/nim/0"] == -history[-1]["baseline/0/nim/1"] != 0


def test_opponents_are_met_in_both_seats_and_their_moves_are_not_trained(
    base_service: tinker.ServiceClient, beginner: str
) -> None:
    policy = client(base_service, beginner)
    (alone,) = train([policy], NIM, SMALL)
    (fixed,) = train([policy], NIM, SMALL, opponent=against(uniform_of))
    (past,) = train([policy], NIM, SMALL, opponent=PastSelves(max_tokens=12))
    # A fixed opponent samples nothing, so all that is sampled is trained, as in self-play. A past
    # self does, about half of all, and that is not trained. (How long games last is no measure: who
    # makes an illegal move forfeits at once.)
    trained = {
        name: found["tokens"] / found["sampled_tokens"]
        for name, found in {"alone": alone, "fixed": fixed, "past": past}.items()
    }
    assert trained["fixed"] == pytest.approx(trained["alone"], rel=0.25)
    assert trained["past"] < 0.75 * trained["fixed"]
    assert not [name for name in {**fixed, **past} if name.startswith("second")]


def test_two_policies_learn_apart(base_service: tinker.ServiceClient, beginner: str) -> None:
    pair = [client(base_service, beginner) for _ in range(2)]
    cfg = Config(games=16, max_tokens=12, steps=2, learning_rate=1e-3)
    first, second = islice(train(pair, NIM, cfg), 2)
    assert {name for name in second if name.startswith("baseline")} == {
        f"baseline/{learner}/nim/{seat}" for learner in (0, 1) for seat in (0, 1)
    }
    assert first["first/seat0_return"] == -first["second/seat1_return"]
    text = NIM[0].question
    samplers = [policy.save_weights_and_get_sampling_client().result() for policy in pair]
    apart = [move_probabilities(sampler, [text])[text].mass for sampler in samplers]
    assert apart[0] != apart[1]


def test_a_resumed_run_goes_on_with_its_baselines(
    base_service: tinker.ServiceClient, beginner: str
) -> None:
    """At learning rate 0 two steps at once are one step and another."""
    cfg = Config(games=8, max_tokens=12, steps=2, learning_rate=0.0)
    policy = client(base_service, beginner)
    whole = list(train([policy], NIM, cfg))
    rest = list(train([policy], NIM, cfg, start=1, baselines=baselines_in(whole[0])))
    assert rest == [whole[1]]

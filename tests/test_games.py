"""Games: best moves against brute force over open_spiel, play in batches, exact exploitability."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pyspiel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import games
from posttrain.tasks.draws import Split
from posttrain.tasks.games import GAMES, Position, announce, kuhn, nim, play, position, score
from posttrain.tasks.games.position import game_of

SOLVED = ("nim", "tic-tac-toe")
indices = st.integers(0, 10**9)


@functools.cache
def brute_force(game: str, history: tuple[int, ...]) -> float:
    """Value of a position of open_spiel for the player to move, knowing nothing of the game."""
    state = loaded(game).new_initial_state()
    for action in history:
        state.apply_action(action)
    if state.is_terminal():
        # The player who would move next.
        return float(state.returns()[len(history) % 2])
    return max(-brute_force(game, (*history, action)) for action in state.legal_actions())


@functools.cache
def loaded(game: str) -> pyspiel.Game:
    return pyspiel.load_game(game)


def brute_best(game: str, history: tuple[int, ...]) -> set[int]:
    state = loaded(game).new_initial_state()
    for action in history:
        state.apply_action(action)
    values = {a: -brute_force(game, (*history, a)) for a in state.legal_actions()}
    return {a for a, value in values.items() if value == max(values.values())}


@pytest.mark.parametrize("heaps", [*itertools.product(range(1, 5), repeat=2), (1, 2, 3), (3, 3, 2)])
def test_best_moves_of_nim_are_those_of_brute_force(heaps: tuple[int, ...]) -> None:
    name = f"nim(pile_sizes={';'.join(map(str, heaps))},is_misere=false)"
    start = Position("nim", heaps)
    state = start.state()
    assert {start.game.action(state, m) for m in start.best} == brute_best(name, ())
    assert {start.game.action(state, m) for m in start.legal} == set(state.legal_actions())
    assert (brute_force(name, ()) == 1) == (nim.nim_sum(named(heaps)) != 0)


def named(heaps: Sequence[int]) -> dict[str, int]:
    return dict(zip("ABCDE", heaps, strict=False))


def test_best_moves_of_tic_tac_toe_are_those_of_brute_force_in_every_position() -> None:
    """By open_spiel's states; each of the 4,520 boards where somebody is to move, once."""
    game, boards = GAMES["tic-tac-toe"], {}
    stack: list[tuple[int, ...]] = [()]
    while stack:
        history = stack.pop()
        state = loaded("tic_tac_toe").new_initial_state()
        for action in history:
            state.apply_action(action)
        if state.is_terminal() or str(state) in boards:
            continue
        boards[str(state)] = history
        stack += [(*history, action) for action in state.legal_actions()]
    assert len(boards) == 4520
    values: dict[str, float] = {}

    def value(state: pyspiel.State, me: int) -> float:
        if state.is_terminal():
            return float(state.returns()[me])
        if str(state) not in values:
            mover = state.current_player()
            values[str(state)] = max(value(state.child(a), mover) for a in state.legal_actions())
        return values[str(state)] if state.current_player() == me else -values[str(state)]

    for history in boards.values():
        state = loaded("tic_tac_toe").new_initial_state()
        for action in history:
            state.apply_action(action)
        text = game.text(state)
        me = state.current_player()
        after = {a: value(state.child(a), me) for a in state.legal_actions()}
        best = {a for a, got in after.items() if got == max(after.values())}
        assert {game.action(state, m) for m in game.best(text)} == best
        assert {game.action(state, m) for m in game.legal(text)} == set(state.legal_actions())


@given(st.sampled_from(SOLVED), st.sampled_from(["train", "validation", "test"]), indices)
def test_items_grade_themselves(name: str, split: str, i: int) -> None:
    item = position(name, split, i)
    assert item.decisive
    for answer in (item.solution, item.bare_answer):
        assert item.grade(answer) == games.position("nim", "train", 0).grade(
            games.position("nim", "train", 0).solution
        )
    for move in item.legal:
        assert item.grade(announce(move)).correct == (move in item.best)
    assert sum(item.best.values()) == pytest.approx(1)
    assert game_of(item.question) is item.game


@given(indices)
def test_work_of_nim_adds_up(i: int) -> None:
    item = position("nim", "train", i)
    parts, alone = item.game.work(item.question).removesuffix(".").split(". Unpaired: ")
    for part, size in zip(parts.split(", "), item.setup, strict=True):
        powers = [int(p) for p in part.split("=")[1].split("+")]
        assert sum(powers) == size
        assert all(p & (p - 1) == 0 for p in powers)
    assert sum(map(int, alone.split("+"))) == nim.nim_sum(named(item.setup))


@pytest.mark.parametrize(
    ("completion", "move"),
    [
        ("Move: A2.", "A2"),
        ("A=1. Unpaired: 3. Move: B12.", "B12"),
        ("Move: A1. No. Move: B2.", "B2"),
        ("Move: A2", None),
        ("Move: A2.5", None),
        ("Move: a2.", None),
        ("move: A2.", None),
        ("Move:  A2.", None),
        ("Move: 10.", None),
        ("Move: call.", None),
        ("A2", None),
        ("", None),
    ],
)
def test_moves_are_read_strictly(completion: str, move: str | None) -> None:
    assert games.read_move(completion) == move
    grade = Position("nim", (3, 12)).grade(completion)
    assert grade.parsed == (move is not None)
    assert not (grade.correct and not grade.parsed)


@given(st.text())
def test_grading_never_raises(text: str) -> None:
    for item in (
        Position("nim", (3, 4)),
        Position("tic-tac-toe", ()),
        Position("kuhn-poker", (0, 2)),
    ):
        assert not item.grade(text).correct or games.read_move(text) in item.best


def test_items_are_the_same_on_every_machine() -> None:
    assert [position(n, "train", 5).key for n in GAMES] == KEYS


KEYS = ["nim:3,4,1", "tic-tac-toe:7,1,8,3", "kuhn-poker:0,2,0,1"]


@pytest.mark.parametrize("name", SOLVED)
def test_splits_are_disjoint_up_to_symmetry(name: str) -> None:
    families = {}
    for split in ("train", "validation", "test"):
        items = [position(name, split, i) for i in range(1500)]
        families[split] = {item.game.family(item.setup) for item in items}
        assert len({p.key for p in games.positions(name, split, 100)}) == 100
    for a, b in itertools.combinations(families.values(), 2):
        assert not a & b
    assert len(families["train"]) > 4 * len(families["test"])


def test_symmetric_positions_are_one_family() -> None:
    game = GAMES["tic-tac-toe"]
    corners = {game.family((corner,)) for corner in (1, 3, 7, 9)}
    edges = {game.family((edge,)) for edge in (2, 4, 6, 8)}
    assert len(corners) == len(edges) == 1
    assert len(corners | edges | {game.family((5,))}) == 3
    assert GAMES["nim"].family((1, 5, 3)) == GAMES["nim"].family((5, 3, 1))


def test_out_of_distribution_nim_has_larger_heaps_and_levels_are_heaps_and_free_cells() -> None:
    assert all(max(p.setup) > nim.LARGEST for p in games.positions("nim", "ood", 300))
    assert all(max(p.setup) <= nim.LARGEST for p in games.positions("nim", "test", 100))
    assert {len(p.setup) for p in games.positions("nim", "ood", 300)} == {3, 4, 5}
    assert {len(p.setup) for p in games.positions("nim", "train", 50, level=(3, 3))} == {3}
    for item in games.positions("tic-tac-toe", "train", 100, level=(2, 4)):
        assert len(item.legal) in (2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("go", "train", 0), "unknown game 'go'; known: nim, tic-tac-toe, kuhn-poker"),
        (("kuhn-poker", "test", 0), "kuhn-poker has no split test; it has train"),
        (("tic-tac-toe", "ood", 0), "has no split ood; it has train, validation, test"),
    ],
)
def test_bad_requests_list_what_is_known(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        position(*arguments)


def test_bad_positions_and_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="nim has levels 2 to 4 in train, not 5 to 6"):
        position("nim", "train", 0, level=(5, 6))
    with pytest.raises(ValueError, match="nim has no decisive position of level 2 to 2 in test"):
        position("nim", "test", 0, level=(2, 2))
    with pytest.raises(ValueError, match="there are only 14 different items here, not 100"):
        games.positions("kuhn-poker", "train", 100)
    with pytest.raises(ValueError, match="1 to 5 heaps of 1 to 99 objects"):
        Position("nim", (0, 3)).state()
    with pytest.raises(ValueError, match="is over after the moves"):
        Position("tic-tac-toe", (1, 4, 2, 5, 3)).state()
    with pytest.raises(ValueError, match="no position after the moves"):
        Position("tic-tac-toe", (1, 1)).state()
    with pytest.raises(ValueError, match="nobody is to move after"):
        Position("kuhn-poker", (0,)).state()
    with pytest.raises(ValueError, match=r"known game \(nim, tic-tac-toe, kuhn-poker\)"):
        games.optimal().moves(["Chess. Your move?"])
    for name, text in (("nim", "Nim. Heaps: . Your move?"), ("kuhn-poker", "Kuhn poker. ?")):
        with pytest.raises(ValueError, match="not a position of"):
            GAMES[name].legal(text)


# Kuhn poker


def best_response_value(bets: dict[str, float]) -> float:
    """(Best response to both seats) / 2, by trying all 64 pure strategies in each seat."""

    def payoff(first: dict[str, float], second: dict[str, float]) -> float:
        total = 0.0
        for a, b in itertools.permutations(range(3), 2):
            high = 1 if a > b else -1
            p = [first[tell(a, "none")], second[tell(b, "pass")], first[tell(a, "pass bet")]]
            call = second[tell(b, "bet")]
            check = (1 - p[1]) * high + p[1] * (p[2] * 2 * high - (1 - p[2]))
            total += (p[0] * (call * 2 * high + (1 - call)) + (1 - p[0]) * check) / 6
        return total

    pure = [
        dict(zip(kuhn.TEXTS, bits, strict=True))
        for bits in itertools.product((0.0, 1.0), repeat=12)
    ]
    firsts = {tuple(s[tell(c, h)] for c in range(3) for h in ("none", "pass bet")): s for s in pure}
    seconds = {tuple(s[tell(c, h)] for c in range(3) for h in ("pass", "bet")): s for s in pure}
    as_first = max(payoff(strategy, bets) for strategy in firsts.values())
    as_second = max(-payoff(bets, strategy) for strategy in seconds.values())
    return (as_first + as_second) / 2


def tell(card: int, history: str) -> str:
    return f"Kuhn poker. Your card: {'JQK'[card]}. So far: {history}. Your move?"


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1 / 6, 0.25, 1 / 3])
def test_kuhns_equilibria_cannot_be_exploited(alpha: float) -> None:
    assert kuhn.exploitability(kuhn.equilibrium(alpha)) == pytest.approx(0, abs=1e-12)


def test_exploitability_of_known_and_of_random_strategies() -> None:
    assert kuhn.exploitability(dict.fromkeys(kuhn.TEXTS, 0.5)) == pytest.approx(11 / 24)
    rng = random.Random(0)
    for _ in range(5):
        bets = {text: rng.random() for text in kuhn.TEXTS}
        assert kuhn.exploitability(bets) == pytest.approx(best_response_value(bets))
    for text in kuhn.TEXTS:  # a step out of equilibrium costs something, or stays in the family
        moved = kuhn.equilibrium(1 / 6) | {text: 0.6}
        assert kuhn.exploitability(moved) >= -1e-12


def test_bad_strategies_are_refused() -> None:
    with pytest.raises(ValueError, match="11 of 12 texts are missing, such as 'Kuhn poker"):
        kuhn.exploitability({kuhn.TEXTS[0]: 0.5})
    with pytest.raises(ValueError, match=r"a probability is in \[0, 1\]"):
        kuhn.exploitability(dict.fromkeys(kuhn.TEXTS, 1.5))
    with pytest.raises(ValueError, match=r"alpha is in \[0, 1/3\]"):
        kuhn.equilibrium(0.5)


def test_a_player_sees_its_own_card_only() -> None:
    for mine, history in itertools.product(range(3), [(), (0,), (1,), (0, 1)]):
        seat = len(history) % 2
        others = [c for c in range(3) if c != mine]
        deals = [(mine, c) if seat == 0 else (c, mine) for c in others]
        texts = {Position("kuhn-poker", (*deal, *history)).question for deal in deals}
        assert len(texts) == 1
        assert f"card: {'JQK'[mine]}." in texts.pop()
    assert len(set(kuhn.TEXTS)) == 12


def test_equilibrium_play_earns_minus_one_eighteenth() -> None:
    deals = [Position("kuhn-poker", deal) for deal in itertools.permutations(range(3), 2)] * 3000
    result = score(play(deals, [games.optimal(seed=1), games.optimal(seed=2)]))
    assert result["seat0_return"] == pytest.approx(kuhn.VALUE, abs=4 * 1.3 / len(deals) ** 0.5)
    assert result["optimal"] == 1.0


def test_frequencies_of_an_expert_are_those_of_its_strategy() -> None:
    found = games.frequencies(games.optimal(seed=3), kuhn.TEXTS, 4000)
    for text, bet in kuhn.equilibrium(1 / 6).items():
        assert found[text]["bet"] == pytest.approx(bet, abs=0.04)
    bets = {text: shares["bet"] for text, shares in found.items()}
    assert 0 <= kuhn.exploitability(bets) < 0.03
    mute = games.frequencies(Says("?"), kuhn.TEXTS, 2)
    assert all(shares == {"pass": 0.5, "bet": 0.5} for shares in mute.values())


# Play


class Says:
    """Always the same completion; remembers how it was asked."""

    def __init__(self, completion: str) -> None:
        self.completion = completion
        self.asked: list[int] = []

    def moves(self, texts: Sequence[str]) -> list[str]:
        self.asked.append(len(texts))
        return [self.completion] * len(texts)


def test_best_play_decides_nim_by_the_nim_sum_and_draws_tic_tac_toe() -> None:
    starts = games.positions("nim", "train", 300, decisive=False)
    for match in play(starts, [games.optimal(), games.optimal(seed=1)]):
        won = 1.0 if nim.nim_sum(named(match.start.setup)) else -1.0
        assert match.returns == (won, -won)
    for match in play([Position("tic-tac-toe", ())] * 100, [games.optimal(), games.optimal()]):
        assert match.returns == (0.0, 0.0)
        assert len(match.turns) == 9


def test_the_expert_never_loses_tic_tac_toe_and_random_play_often_does() -> None:
    starts = [Position("tic-tac-toe", ())] * 400
    seats = [(0, 1), (1, 0)] * 200
    matches = play(starts, [games.optimal(), games.uniform()], seats)
    best, poor = score(matches, 0), score(matches, 1)
    assert best["seat0_loss"] == best["seat1_loss"] == 0.0
    assert best["optimal"] == best["legal"] == 1.0
    assert poor["seat1_win"] == 0.0
    assert poor["seat1_loss"] > 0.9
    assert 0.2 < poor["optimal"] < 0.8
    assert best["seat0_games"] == poor["seat1_games"] == 200


def test_random_against_random_has_the_known_odds() -> None:
    """Uniform play of tic-tac-toe: first wins 58.49 %, second 28.81 %, draw 12.70 %."""
    starts = [Position("tic-tac-toe", ())] * 4000
    result = score(play(starts, [games.uniform(seed=1), games.uniform(seed=2)]))
    assert result["seat0_win"] == pytest.approx(0.5849, abs=0.03)
    assert result["seat0_loss"] == pytest.approx(0.2881, abs=0.03)
    assert result["seat0_draw"] == pytest.approx(0.1270, abs=0.03)


def test_each_player_is_asked_once_a_round_for_everything() -> None:
    """Nim of single objects: the number of moves is the number of heaps."""
    first, second = Says("Move: A1."), Says("Move: B1.")
    starts = [Position("nim", (1, 1))] * 5
    matches = play(starts, [first, second])
    assert (first.asked, second.asked) == ([5], [5])
    assert all(match.returns == (-1.0, 1.0) for match in matches)
    both = Says("Move: A1.")
    mixed = play(starts, [both, Says("Move: B1.")], [(0, 1), (0, 1), (1, 0), (1, 0), (1, 0)])
    assert both.asked == [2, 3]
    assert [match.returns[0] for match in mixed] == [-1.0] * 5


def test_self_play_asks_one_player_for_both_seats() -> None:
    alone = games.optimal()
    (match,) = play([Position("nim", (2, 3))], [alone], [(0, 0)])
    assert [turn.seat for turn in match.turns[:2]] == [0, 1]
    assert match.returns == (1.0, -1.0)


@pytest.mark.parametrize(
    ("name", "setup", "worst"),
    [("nim", (2, 3), -1.0), ("tic-tac-toe", (5,), -1.0), ("kuhn-poker", (2, 0), -2.0)],
)
@pytest.mark.parametrize("completion", ["Move: E9.", "I give up."])
def test_who_makes_no_legal_move_forfeits_the_worst_return(
    name: str, setup: tuple[int, ...], worst: float, completion: str
) -> None:
    (match,) = play([Position(name, setup)], [Says(completion), games.optimal()])
    assert match.forfeited == 0
    assert match.returns == (worst, -worst)
    result = score([match])
    assert result["legal"] == 0.0
    assert result["unreadable"] == (completion == "I give up.")
    assert result["seat0_loss"] == 1.0


def test_or_stumbles_on_at_random() -> None:
    starts = [Position("tic-tac-toe", ())] * 300
    players = [Says("?"), Says("?")]
    matches = play(starts, players, penalty=games.stumble, seed=3)
    assert all(match.forfeited is None for match in matches)
    assert score(matches)["legal"] == 0.0
    firsts = Counter(match.turns[0].played for match in matches)
    assert set(firsts) == set("123456789")
    again = play(starts, players, penalty=games.stumble, seed=3)
    assert [m.returns for m in again] == [m.returns for m in matches]


def test_score_by_hand() -> None:
    """A1 from (1, 2) is wrong, then B2 wins or A1 loses."""
    start = Position("nim", (1, 2))
    (match,) = play([start], [Says("Move: A1."), Says("Move: B2.")])
    assert score([match], 0) == {
        "games": 1,
        "turns": 1,
        "decisions": 1,
        "seat0_games": 1,
        "seat1_games": 0,
        "legal": 1.0,
        "unreadable": 0.0,
        "optimal": 0.0,
        "seat0_win": 0.0,
        "seat0_draw": 0.0,
        "seat0_loss": 1.0,
        "seat0_return": -1.0,
    }
    assert score([match], 1)["optimal"] == 1.0
    with pytest.raises(ValueError, match="player 2 took part in none of 1 games"):
        score([match], 2)


def test_play_refuses_what_does_not_fit() -> None:
    start = Position("nim", (1, 2))
    with pytest.raises(ValueError, match="2 games need as many seats, not 1"):
        play([start, start], [games.optimal()], [(0, 0)])
    with pytest.raises(ValueError, match="seats name players 0 to 0"):
        play([start], [games.optimal()])

    class Silent:
        def moves(self, texts: Sequence[str]) -> list[str]:
            return []

    with pytest.raises(ValueError, match="player 0 gave 0 moves to 1 texts"):
        play([start], [Silent(), Silent()])
    with pytest.raises(ValueError, match="skill is a probability, not 2"):
        games.Expert(2)


# Corpus


def test_the_corpus_is_legal_play_of_mixed_quality_and_hides_held_out_problems() -> None:
    best = Counter[bool]()
    held_out = {
        p.question
        for n in SOLVED
        for s in ("validation", "test")
        for p in games.positions(n, s, 150)
    }
    singles = set()
    for document in islice(games.documents(0), 1500):
        blocks = [b.split("\nAnswer: ") for b in document.split("\n\n")]
        for question, answer in blocks:
            text = question.removeprefix("Question: ")
            move = games.read_move(answer)
            game = game_of(text)
            assert move in game.legal(text)
            if len(game.best(text)) < len(game.legal(text)):
                best[move in game.best(text)] += 1
        if len(blocks) == 1:
            singles.add(blocks[0][0].removeprefix("Question: "))
        if blocks[0][0].startswith("Question: Kuhn"):
            cards = {q.split("card: ")[1][0] for q, _ in blocks if "pass bet" in q}
            assert len(cards) <= 3
    assert 0.4 < best[True] / best.total() < 0.8
    assert len(singles & held_out) < 0.02 * len(singles)  # ends of whole games at most
    assert list(islice(games.documents(0), 5)) == list(islice(games.documents(0), 5))
    assert list(islice(games.documents(0), 5)) != list(islice(games.documents(1), 5))


def test_every_split_of_every_game_yields_items() -> None:
    for name, game in GAMES.items():
        for split in game.levels:
            assert position(name, Split(split), 3) == position(name, split, 3)


def test_a_mixture_of_poker_players_is_worth_the_mean_of_them() -> None:
    """Exactly, in both seats and against anyone: that is what weighing by reach is for."""
    rng = random.Random(0)
    one, two, other = ({text: rng.random() for text in kuhn.TEXTS} for _ in range(3))
    both = kuhn.mixture([one, two])
    assert both != pytest.approx({text: (one[text] + two[text]) / 2 for text in kuhn.TEXTS})
    for first, parts in (
        (kuhn.value(both, other), [kuhn.value(p, other) for p in (one, two)]),
        (kuhn.value(other, both), [kuhn.value(other, p) for p in (one, two)]),
    ):
        assert first == pytest.approx(sum(parts) / 2)
    assert kuhn.mixture([one, one]) == pytest.approx(one)
    with pytest.raises(ValueError, match="needs a strategy"):
        kuhn.mixture([])

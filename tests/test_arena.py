"""TextArena's games: results against independent knowledge, and games that disturb no others."""

import functools
import operator
import random
import re
import sys
from collections.abc import Sequence

import pytest

from posttrain.tasks import arena
from posttrain.tasks.games.tictactoe import winner

PILE = re.compile(r"pile (\d+): (\d+)")


class Chance:
    """Makes random moves among those that the text offers; remembers nothing."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def moves(self, texts: Sequence[str]) -> list[str]:
        return [self.move(text, random.Random(f"{self.seed}{text}")) for text in texts]

    def move(self, text: str, rng: random.Random) -> str:
        piles = heaps(text)
        if piles:
            return "[{} {}]".format(*rng.choice([(i, 1) for i, n in piles.items() if n]))
        if "Connect Four" in text:
            return f"[{rng.randrange(7)}]"  # columns do not fill up in a short game
        offered = text.rpartition("vailable")[2]
        return rng.choice(arena.BRACKETS.findall(offered))


class NimSolver(Chance):
    """Leaves heaps whose exclusive or is zero, where that can be."""

    def move(self, text: str, rng: random.Random) -> str:
        piles = heaps(text)
        total = functools.reduce(operator.xor, piles.values())
        for pile, size in piles.items():
            if size ^ total < size:
                return f"I take some: [{pile} {size - (size ^ total)}]"
        return super().move(text, rng)


def heaps(text: str) -> dict[int, int]:
    shown = text.rpartition("Current Pile:")[2] if "Current Pile:" in text else ""
    return {int(pile): int(size) for pile, size in PILE.findall(shown)}


def test_who_knows_nim_beats_chance_from_every_start_that_can_be_won() -> None:
    for game in ("Nim-v0", "Nim-v0-medium"):  # 3^4^5 = 2 and 4^2^3^7 = 2
        begun = arena.starts(game, 6)
        matches = arena.play(begun, [NimSolver(), *[Chance(i) for i in range(6)]],
                             [(0, i + 1) for i in range(6)])  # fmt: skip
        assert [m.rewards for m in matches] == [(1.0, -1.0)] * 6
        assert all(m.turns[0].seat == 0 for m in matches)
        assert all(m.turns[0].move.startswith("[") for m in matches)


def test_tic_tac_toe_is_won_by_three_in_a_row() -> None:
    outcomes = set()
    for match in arena.play(arena.starts("TicTacToe-v0", 12), [Chance(1), Chance(2)],
                            [(i % 2, 1 - i % 2) for i in range(12)]):  # fmt: skip
        board = ["."] * 9
        for turn in match.turns:
            board[int(turn.move.strip("[]"))] = "OX"[turn.seat]
        won = winner("".join(board))
        assert match.rewards == {"O": (1, -1), "X": (-1, 1), None: (0, 0)}[won]
        outcomes.add(match.rewards)
    assert len(outcomes) > 1


@pytest.mark.parametrize("game", arena.GAMES)
def test_every_game_ends_and_nobody_gains_what_the_other_does_not_lose(game: str) -> None:
    for match in arena.play(arena.starts(game, 2), [Chance(3), Chance(4)]):
        assert sum(match.rewards) == 0
        assert not match.cut
        assert match.invalid is None
        assert {turn.seat for turn in match.turns} == {0, 1}


def test_games_side_by_side_are_the_games_alone() -> None:
    begun = arena.starts("KuhnPoker-v0", 6)
    assert len({start.seed for start in begun}) == 6
    random.seed(5)
    before = random.getstate()
    together = arena.play(begun, [Chance(1), Chance(2)])
    assert random.getstate() == before
    alone = [arena.play([start], [Chance(1), Chance(2)])[0] for start in begun]
    assert together == alone
    assert len({match.turns[0].text for match in together}) > 1  # other cards


class Nonsense(Chance):
    def move(self, text: str, rng: random.Random) -> str:
        return "I would rather not."


def test_the_second_illegal_move_in_a_row_loses() -> None:
    (match,) = arena.play(arena.starts("TicTacToe-v0", 1), [Chance(), Nonsense()])
    assert (match.rewards, match.invalid) == ((1.0, -1.0), 1)
    assert [turn.seat for turn in match.turns] == [0, 1, 1]
    assert match.turns[1].move == "I would rather not."


def test_a_game_without_end_is_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "LONGEST", 3)
    (match,) = arena.play(arena.starts("TicTacToe-v0", 1), [Chance(), Chance()])
    assert (match.cut, match.rewards, len(match.turns)) == (True, (0.0, 0.0), 3)


def test_the_move_is_the_last_thing_in_brackets() -> None:
    assert arena.last_brackets("Not [3], as [4] is free: [4 2] then.") == "[4 2]"
    assert arena.last_brackets("[[1]") == "[1]"


def test_bad_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown game 'Chess-v0'; known: ConnectFour-v0, Kuhn"):
        arena.starts("Chess-v0", 1)
    begun = arena.starts("Nim-v0", 2)
    with pytest.raises(ValueError, match="2 games need as many seats, not 1"):
        arena.play(begun, [Chance()], [(0, 0)])
    with pytest.raises(ValueError, match="seats name players 0 to 0"):
        arena.play(begun, [Chance()])
    monkeypatch.setattr(Chance, "moves", lambda self, texts: [])
    with pytest.raises(ValueError, match="player 0 gave 0 moves to 2 texts"):
        arena.play(begun, [Chance(), Chance()])
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install textarena==0\.7\.4"):
        arena.play(begun, [Chance(), Chance()])

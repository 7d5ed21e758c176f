"""Tic-tac-toe, where best play is a draw. A free cell is shown by its number.

Tic-tac-toe. You are O. Board: X 2 3 / 4 5 6 / 7 8 9. Your move?        Move: 5.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Mapping

import pyspiel

from posttrain.tasks.draws import Split

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
TURN = (6, 3, 0, 7, 4, 1, 8, 5, 2)  # a quarter turn: cell i of the result is TURN[i] before
MIRROR = (2, 1, 0, 5, 4, 3, 8, 7, 6)
TEXT = re.compile(r"Tic-tac-toe\. You are ([XO])\. Board: ((?:[XO\d] ?/? ?){9})\. Your move\?")


def winner(board: str) -> str | None:
    """X, O or None. A board is nine characters, row by row, with dots for free cells."""
    for a, b, c in LINES:
        if board[a] != "." and board[a] == board[b] == board[c]:
            return board[a]
    return None


def _mover(board: str) -> str:
    return "X" if board.count("X") == board.count("O") else "O"


def _after(board: str, cell: int) -> str:
    return f"{board[:cell]}{_mover(board)}{board[cell + 1 :]}"


@functools.cache  # 5,478 boards at most
def value(board: str) -> int:
    """What best play brings the player to move, by minimax: 1, 0 or -1."""
    if winner(board):
        return -1  # the other one has just won
    free = [cell for cell in range(9) if board[cell] == "."]
    return max((-value(_after(board, cell)) for cell in free), default=0)


def symmetries(board: str) -> Iterator[str]:
    """The eight boards that are the same up to turning and mirroring."""
    for _ in range(4):
        board = "".join(board[i] for i in TURN)
        yield board
        yield "".join(board[i] for i in MIRROR)


@functools.lru_cache(maxsize=1 << 14)
def _family(board: str) -> str:
    return f"tic-tac-toe:{min(symmetries(board))}"


def _board(text: str) -> str:
    found = TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"not a position of tic-tac-toe: {text[:80]!r}")
    return re.sub(r"\d", ".", found[2].replace(" ", "").replace("/", ""))


@functools.cache
def _game() -> pyspiel.Game:
    return pyspiel.load_game("tic_tac_toe")


class TicTacToe:
    """The difficulty is the number of free cells. A setup is the cells taken, in turns, from 1.

    The order of a side's own moves does not change a position, so `draw` sorts them.
    """

    rules = "Three in a row wins. Name a free cell."
    levels: Mapping[str, tuple[int, int]] = {
        Split.TRAIN: (2, 9),
        Split.VALIDATION: (2, 9),
        Split.TEST: (2, 9),
    }

    def draw(self, rng: random.Random, level: int, ood: bool) -> tuple[int, ...]:
        while True:
            cells = rng.sample(range(9), 9 - level)
            if self._replay(cells) is None:
                continue
            setup = [0] * len(cells)
            setup[::2], setup[1::2] = sorted(cells[::2]), sorted(cells[1::2])
            return tuple(cell + 1 for cell in setup)

    def _replay(self, cells: list[int]) -> str | None:
        """The board after these moves, or None if it is over."""
        board = ["."] * 9
        for i, cell in enumerate(cells):
            board[cell] = "XO"[i % 2]
        after = "".join(board)
        return None if winner(after) else after  # a line that is there now was there to the end

    def state(self, setup: tuple[int, ...]) -> pyspiel.State:
        state = _game().new_initial_state()
        for cell in setup:
            if state.is_terminal() or cell - 1 not in state.legal_actions():
                raise ValueError(f"tic-tac-toe has no position after the moves {setup}")
            state.apply_action(cell - 1)
        if state.is_terminal():
            raise ValueError(f"tic-tac-toe is over after the moves {setup}")
        return state

    def family(self, setup: tuple[int, ...]) -> str:
        board = self._replay([cell - 1 for cell in setup])
        return _family(board or "")

    def text(self, state: pyspiel.State) -> str:
        board = state.observation_string(0).replace("\n", "").upper()
        cells = [str(i + 1) if cell == "." else cell for i, cell in enumerate(board)]
        rows = [" ".join(cells[i : i + 3]) for i in (0, 3, 6)]
        return f"Tic-tac-toe. You are {_mover(board)}. Board: {' / '.join(rows)}. Your move?"

    @functools.lru_cache(maxsize=1 << 13)  # noqa: B019 (one object, as long as the process)
    def legal(self, text: str) -> tuple[str, ...]:
        return tuple(str(i + 1) for i, cell in enumerate(_board(text)) if cell == ".")

    @functools.lru_cache(maxsize=1 << 13)  # noqa: B019
    def best(self, text: str) -> Mapping[str, float]:
        board = _board(text)
        values = {move: -value(_after(board, int(move) - 1)) for move in self.legal(text)}
        moves = [move for move, got in values.items() if got == max(values.values())]
        return dict.fromkeys(moves, 1 / len(moves))

    def work(self, text: str) -> str:
        """Where each side would complete a line."""
        board = _board(text)
        mine, other = ("X", "O") if _mover(board) == "X" else ("O", "X")
        sides = {"I complete a line at": mine, "You complete a line at": other}
        return " ".join(
            f"{words} {' '.join(cells) or 'none'}."
            for words, side in sides.items()
            for cells in [[m for m in self.legal(text) if _completes(board, int(m) - 1, side)]]
        )

    def action(self, state: pyspiel.State, move: str) -> int:
        return int(move) - 1


def _completes(board: str, cell: int, side: str) -> bool:
    return winner(f"{board[:cell]}{side}{board[cell + 1 :]}") == side

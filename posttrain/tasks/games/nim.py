"""Nim: take from one heap; who takes the last object wins.

    Nim. Heaps: A3 B4 C5. Your move?        Move: A2.

Bouton (1901, "Nim, a game with a complete mathematical theory"): the player to move loses against
best play if and only if the exclusive or of the heap sizes, the nim-sum, is zero. So the best
moves are those that make it zero.
"""

from __future__ import annotations

import functools
import operator
import random
import re
from collections.abc import Mapping

import pyspiel

from posttrain.tasks.draws import Split

LARGEST = 7  # objects in a heap
OOD_LARGEST = 15  # one heap at least has more than `LARGEST`
LETTERS = "ABCDE"
TEXT = re.compile(r"Nim\. Heaps: ((?:[A-E]\d+ ?)+)\. Your move\?")
HEAP = re.compile(r"([A-E])(\d+)")


@functools.cache
def _game(heaps: tuple[int, ...]) -> pyspiel.Game:
    # As a dictionary: in a string a single heap would be taken for a number.
    sizes = ";".join(map(str, heaps))
    return pyspiel.load_game("nim", {"pile_sizes": sizes, "is_misere": False})


def _heaps(text: str) -> dict[str, int]:
    found = TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"not a position of Nim: {text[:80]!r}")
    return {letter: int(size) for letter, size in HEAP.findall(found[1])}


def nim_sum(heaps: Mapping[str, int]) -> int:
    """The exclusive or of the sizes."""
    return functools.reduce(operator.xor, heaps.values(), 0)


class Nim:
    """The difficulty is the number of heaps. A setup is their sizes."""

    rules = "Take any number of objects from one heap. Who takes the last object wins."
    levels: Mapping[str, tuple[int, int]] = {
        Split.TRAIN: (2, 4),
        Split.VALIDATION: (2, 4),
        Split.TEST: (2, 4),
        Split.OOD: (3, 5),  # larger heaps, and more
    }

    def draw(self, rng: random.Random, level: int, ood: bool) -> tuple[int, ...]:
        heaps = [rng.randint(1, OOD_LARGEST if ood else LARGEST) for _ in range(level)]
        if ood and max(heaps) <= LARGEST:
            heaps[rng.randrange(level)] = rng.randint(LARGEST + 1, OOD_LARGEST)
        return tuple(heaps)

    def state(self, setup: tuple[int, ...]) -> pyspiel.State:
        if not (1 <= len(setup) <= len(LETTERS) and all(1 <= n <= 99 for n in setup)):
            raise ValueError(f"Nim has 1 to 5 heaps of 1 to 99 objects, not {setup}")
        return _game(setup).new_initial_state()

    def family(self, setup: tuple[int, ...]) -> str:
        return f"nim:{sorted(setup)}"

    def text(self, state: pyspiel.State) -> str:
        sizes = str(state).partition(":")[2].split()
        shown = [f"{letter}{n}" for letter, n in zip(LETTERS, sizes, strict=False) if n != "0"]
        return f"Nim. Heaps: {' '.join(shown)}. Your move?"

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019 (one object, as long as the process)
    def legal(self, text: str) -> tuple[str, ...]:
        heaps = _heaps(text)
        return tuple(f"{letter}{n}" for letter in heaps for n in range(1, heaps[letter] + 1))

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019
    def best(self, text: str) -> Mapping[str, float]:
        heaps = _heaps(text)
        total = nim_sum(heaps)
        moves = [f"{a}{n - (n ^ total)}" for a, n in heaps.items() if n ^ total < n]
        moves = moves or list(self.legal(text))  # lost against best play, whatever one does
        return dict.fromkeys(moves, 1 / len(moves))

    def work(self, text: str) -> str:
        """Each heap as powers of two, and the powers that have no partner."""
        heaps = _heaps(text)
        parts = [f"{letter}={'+'.join(map(str, _powers(n)))}" for letter, n in heaps.items()]
        alone = "+".join(map(str, _powers(nim_sum(heaps)))) or "none"
        return f"{', '.join(parts)}. Unpaired: {alone}."

    def action(self, state: pyspiel.State, move: str) -> int:
        piles = len(str(state).partition(":")[2].split())
        return (int(move[1:]) - 1) * piles + LETTERS.index(move[0])


def _powers(n: int) -> list[int]:
    return [1 << bit for bit in reversed(range(n.bit_length())) if n >> bit & 1]

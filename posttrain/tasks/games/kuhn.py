"""Kuhn poker: three cards, one each, one bet. The smallest game of bluff.

    Kuhn poker. Your card: K. So far: pass bet. Your move?        Move: bet.

Each player antes one chip. A bet is one more chip; `bet` after a bet calls it and `pass` folds.
Kuhn (1950, "A simplified two-person poker") gives all equilibria: one number alpha in [0, 1/3] for
the first player, one strategy for the second. The game is worth -1/18 chips to the first.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyspiel

from posttrain.tasks.draws import Split

CARDS = "JQK"
MOVES = ("pass", "bet")  # by open_spiel's number
LARGEST_ALPHA = 1 / 3
VALUE = -1 / 18  # chips that equilibrium play brings the first player
TEXT = re.compile(r"Kuhn poker\. Your card: ([JQK])\. So far: (none|[a-z ]+)\. Your move\?")
HISTORIES = {"none": "", "pass": "p", "bet": "b", "pass bet": "pb"}  # in open_spiel's letters
WORDS = {letters: words for words, letters in HISTORIES.items()}


@functools.cache
def _game() -> pyspiel.Game:
    return pyspiel.load_game("kuhn_poker")


def _read(text: str) -> tuple[str, str]:
    """(card, history so far in open_spiel's letters)."""
    found = TEXT.fullmatch(text)
    if found is None or found[2] not in HISTORIES:
        raise ValueError(f"not a position of Kuhn poker: {text[:80]!r}")
    return found[1], HISTORIES[found[2]]


def _tell(information: str) -> str:
    """The text of an information state of open_spiel, such as `2pb`."""
    card, history = CARDS[int(information[0])], WORDS[information[1:]]
    return f"Kuhn poker. Your card: {card}. So far: {history}. Your move?"


TEXTS = tuple(_tell(f"{card}{history}") for history in WORDS for card in range(3))


def equilibrium(alpha: float = LARGEST_ALPHA) -> dict[str, float]:
    """The probability of a bet in each of the 12 texts, in the equilibrium that `alpha` names.

    Raises:
        ValueError: alpha is not in [0, 1/3].
    """
    if not 0 <= alpha <= LARGEST_ALPHA:
        raise ValueError(f"alpha is in [0, 1/3], not {alpha}")
    bets = {
        "": (alpha, 0.0, 3 * alpha),  # with J, Q, K
        "pb": (0.0, alpha + 1 / 3, 1.0),
        "p": (1 / 3, 0.0, 1.0),
        "b": (0.0, 1 / 3, 1.0),
    }
    return {
        text: bets[history][CARDS.index(card)] for text in TEXTS for card, history in [_read(text)]
    }


def exploitability(bets: Mapping[str, float]) -> float:
    """Chips per game that best responses to a strategy win on average over both seats.

    Half of NashConv, as open_spiel computes it: 0 in equilibrium, 11/24 for random play.

    Args:
        bets: the probability of a bet for each of the 12 `TEXTS`.

    Raises:
        ValueError: a text is missing, or a probability is none.
    """
    # Imported here: it takes a third of a second, and only this and `value` need it.
    from open_spiel.python.algorithms import exploitability as algorithm

    return float(algorithm.exploitability(_game(), _tabular(bets)))


def value(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Chips per game that a strategy in the first seat wins from one in the second, exactly.

    Both as in `exploitability`, which says what is raised.
    """
    from open_spiel.python.algorithms import expected_game_score as algorithm

    tables = [_tabular(first), _tabular(second)]
    return float(algorithm.policy_value(_game().new_initial_state(), tables)[0])


def mixture(strategies: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The strategy of who plays each game by one of several, drawn at random: what fictitious play
    converges with (Brown 1951, "Iterative solution of games by fictitious play").

    Who is asked again after a pass has passed, so there each counts by how often it passes.

    Raises:
        ValueError: there is none.
    """
    if not strategies:
        raise ValueError("a mixture needs a strategy at least")
    mean: dict[str, float] = {}
    for text in TEXTS:
        card, history = _read(text)
        opening = _tell(f"{CARDS.index(card)}")
        weights = [1 - bets[opening] if history == "pb" else 1.0 for bets in strategies]
        total = sum(weights) or 1.0  # if nobody passes, nobody is asked
        mean[text] = sum(w * s[text] for w, s in zip(weights, strategies, strict=True)) / total
    return mean


def _tabular(bets: Mapping[str, float]) -> Any:
    """A strategy as open_spiel has it."""
    from open_spiel.python import policy

    missing = [text for text in TEXTS if text not in bets]
    if missing:
        raise ValueError(f"{len(missing)} of 12 texts are missing, such as {missing[0]!r}")
    wrong = {text: p for text, p in bets.items() if not 0 <= p <= 1}
    if wrong:
        raise ValueError(f"a probability is in [0, 1]: {wrong}")
    table = policy.TabularPolicy(_game())
    for information, row in table.state_lookup.items():
        p = bets[_tell(information)]
        table.action_probability_array[row] = (1 - p, p)
    return table


class KuhnPoker:
    """No difficulty, and no held-out positions: there are 12, and `exploitability` measures all.

    A setup is the first player's card, the second's, and the moves so far, as numbers from 0.
    """

    rules = (
        "Three cards: J, Q, K; the higher wins. One chip each is in the pot. You may pass or bet"
        " one more chip; after a bet, bet calls and pass folds."
    )
    levels: Mapping[str, tuple[int, int]] = {Split.TRAIN: (1, 1)}

    def draw(self, rng: random.Random, level: int, ood: bool) -> tuple[int, ...]:
        deal = rng.sample(range(3), 2)
        return (*deal, *rng.choice([(), (0,), (1,), (0, 1)]))

    def state(self, setup: tuple[int, ...]) -> pyspiel.State:
        state = _game().new_initial_state()
        for action in setup:
            if state.is_terminal() or action not in state.legal_actions():
                raise ValueError(f"Kuhn poker has no position after {setup}")
            state.apply_action(action)
        if state.is_terminal() or state.is_chance_node():
            raise ValueError(f"in Kuhn poker nobody is to move after {setup}")
        return state

    def family(self, setup: tuple[int, ...]) -> str:
        return "kuhn-poker"

    def text(self, state: pyspiel.State) -> str:
        return _tell(state.information_state_string(state.current_player()))

    def legal(self, text: str) -> tuple[str, ...]:
        _read(text)
        return MOVES

    def best(self, text: str) -> Mapping[str, float]:
        """The equilibrium with alpha = 1/6: its moves are those of any equilibrium at all."""
        bet = _middle()[text]
        return {move: p for move, p in zip(MOVES, (1 - bet, bet), strict=True) if p > 0}

    def work(self, text: str) -> str:
        return ""

    def action(self, state: pyspiel.State, move: str) -> int:
        return MOVES.index(move)


@functools.cache
def _middle() -> dict[str, float]:
    return equilibrium(LARGEST_ALPHA / 2)

"""Pretraining text from games: single positions and whole games, played well and badly.

Each document has one author, who finds the best move with a probability of their own, so that a
reader can tell from the first moves how the later ones will be. Most authors are poor: there must
be something left to learn. Moves are legal; only training positions are shown as single problems,
and games start from them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain.tasks.blocks import SEPARATOR, block
from posttrain.tasks.draws import Split
from posttrain.tasks.games.game import announce
from posttrain.tasks.games.play import play
from posttrain.tasks.games.players import Expert
from posttrain.tasks.games.position import GAMES, Position, position


@dataclass(frozen=True)
class Mixture:
    """Shares of what the documents are made of, each a probability."""

    whole: float = 0.4  # that a document is a whole game; else it is single positions
    several: float = 0.35  # that single positions come in twos and threes
    thought: float = 0.3  # that an author shows the work before a best move
    expert: float = 0.15  # that an author always finds the best move
    games: Sequence[str] = tuple(GAMES)


def documents(seed: int, mixture: Mixture | None = None) -> Iterator[str]:
    """The endless sequence of documents that `seed` defines."""
    mixture = mixture or Mixture()
    rng = random.Random(f"games:{seed}")
    i = 0
    while True:
        i += 1
        name = rng.choice(mixture.games)
        skill = 1.0 if rng.random() < mixture.expert else rng.random() * 0.6
        author = Expert(skill, seed=rng.getrandbits(32))
        thought = rng.random() < mixture.thought
        if rng.random() < mixture.whole:
            yield SEPARATOR.join(_game(name, i, seed, rng, author, thought))
        else:
            count = rng.randint(2, 3) if rng.random() < mixture.several else 1
            chosen = [position(name, Split.TRAIN, 3 * i + j, seed=seed) for j in range(count)]
            blocks = [
                _answered(p.name, p.question, author.move(p.question), thought) for p in chosen
            ]
            yield SEPARATOR.join(blocks)


def _game(
    name: str, i: int, seed: int, rng: random.Random, author: Expert, thought: bool
) -> Iterator[str]:
    """The turns of a game: both sides' by one author, or one side's where cards are hidden."""
    start = position(name, Split.TRAIN, i, seed=seed, decisive=False)
    if name == "tic-tac-toe" and rng.random() < 0.5:
        start = Position(name, ())
    (match,) = play([start], [author], [(0, 0)])
    seat = rng.choice((0, 1)) if name == "kuhn-poker" else None
    turns = [turn for turn in match.turns if seat in (None, turn.seat)] or match.turns[:1]
    for turn in turns:
        yield _answered(name, turn.text, turn.move or "", thought)


def _answered(name: str, text: str, move: str, thought: bool) -> str:
    """Work is shown only before a best move: it would contradict another."""
    game = GAMES[name]
    work = game.work(text) if thought and move in game.best(text) else ""
    return block(text, f"{work} {announce(move)}".strip())

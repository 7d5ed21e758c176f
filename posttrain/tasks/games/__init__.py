"""Games of two players behind one text interface: Nim, tic-tac-toe, Kuhn poker.

    starts = positions("nim", "train", 64, decisive=False)
    matches = play(starts, [policy, optimal()])
    score(matches)["optimal"]

The rules are open_spiel's (Lanctot et al. 2019, arXiv:1908.09453), and best play is known exactly.
"""

from posttrain.tasks.games.corpus import documents
from posttrain.tasks.games.game import Game, announce, read_move
from posttrain.tasks.games.play import Match, Turn, forfeit, play, stumble
from posttrain.tasks.games.players import Expert, Player, optimal, uniform
from posttrain.tasks.games.position import GAMES, Position, game_named, game_of, position, positions
from posttrain.tasks.games.score import frequencies, score

__all__ = [
    "GAMES",
    "Expert",
    "Game",
    "Match",
    "Player",
    "Position",
    "Turn",
    "announce",
    "documents",
    "forfeit",
    "frequencies",
    "game_named",
    "game_of",
    "optimal",
    "play",
    "position",
    "positions",
    "read_move",
    "score",
    "stumble",
    "uniform",
]

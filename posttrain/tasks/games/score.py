"""What games say about a player: how it moved, and how it fared in each seat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from posttrain.tasks.games.game import read_move
from posttrain.tasks.games.play import Match
from posttrain.tasks.games.players import Player
from posttrain.tasks.games.position import game_of


def score(matches: Sequence[Match], player: int = 0) -> dict[str, float]:
    """Rates over all turns and games of one player, by its number.

    - `games`, `turns`, `decisions`: how many; a decision is a turn where some legal move is worse
      than another, as exact solution says
    - `legal`: turns with a legal move; `unreadable`: turns where none could be read
    - `optimal`: decisions with a best move
    - `seat0_games`, `seat0_win`, `seat0_draw`, `seat0_loss`, `seat0_return`, and the same for
      seat 1: of its games in that seat; the return is a mean per game

    A rate over nothing is left out.

    Raises:
        ValueError: the player took part in no game.
    """
    found: dict[str, float] = defaultdict(float)
    for match in matches:
        for seat in (0, 1):
            if match.seats[seat] != player:
                continue
            outcome = match.returns[seat]
            found[f"seat{seat}_games"] += 1
            found[f"seat{seat}_return"] += outcome
            found[f"seat{seat}_{'win' if outcome > 0 else 'loss' if outcome < 0 else 'draw'}"] += 1
            for turn in match.turns_of(seat):
                found["turns"] += 1
                found["legal"] += turn.legal
                found["unreadable"] += turn.move is None
                found["decisions"] += turn.decisive
                found["optimal"] += turn.decisive and turn.best
    games = found["seat0_games"] + found["seat1_games"]
    if not games:
        raise ValueError(f"player {player} took part in none of {len(matches)} games")
    result: dict[str, float] = {"games": games}
    result |= {name: found[name] for name in ("turns", "decisions")}
    shares = {"legal": "turns", "unreadable": "turns", "optimal": "decisions"}
    for side in ("seat0", "seat1"):
        result[f"{side}_games"] = found[f"{side}_games"]
        shares |= {f"{side}_{what}": f"{side}_games" for what in ("win", "draw", "loss", "return")}
    return result | {name: found[name] / found[of] for name, of in shares.items() if found[of]}


def frequencies(player: Player, texts: Sequence[str], n: int) -> dict[str, Mapping[str, float]]:
    """How often a player makes each legal move, from `n` answers to each text.

    For a player whose probabilities are not known; these feed `kuhn.exploitability`, which then is
    biased upwards, because noise can be exploited too. Illegal answers count as uniform play,
    which is what `stumble` makes of them.

    Raises:
        ValueError: `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"each text needs an answer, not {n}")
    answers = player.moves([text for text in texts for _ in range(n)])
    shares: dict[str, Mapping[str, float]] = {}
    for i, text in enumerate(texts):
        legal = game_of(text).legal(text)
        made = Counter(read_move(answer) for answer in answers[i * n : (i + 1) * n])
        lost = n - sum(made[move] for move in legal)
        shares[text] = {move: (made[move] + lost / len(legal)) / n for move in legal}
    return shares

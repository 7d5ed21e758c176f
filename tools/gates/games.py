"""Games: the base knows the moves, and not the best ones."""

from __future__ import annotations

import tinker

from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks.draws import Split
from posttrain.tasks.games import GAMES as ALL
from posttrain.tasks.games import positions, read_move
from tools.gates.answers import answers
from tools.gates.gate import Gate

GATES = {
    f"{game}: {what}": gate
    for game in ALL
    for what, gate in {
        "legal moves": Gate(0.9, 1.0, "share of samples with a legal move"),
        "best moves": Gate(0.0, 0.8, "the same with a best one, where the move matters"),
    }.items()
}
MAX_TOKENS = 64
DEALS = 14  # of Kuhn poker, where it is plain what to do; no more can be asked for


def measure(sampler: tinker.SamplingClient, n: int, seed: int = 0) -> dict[str, Estimate]:
    """Every gate, on `n` held-out positions of each game where the move matters, 8 samples each.

    Kuhn poker has few positions and none held out, so all of them count.
    """
    found = {}
    for game, rules in ALL.items():
        if Split.TEST in rules.levels:
            asked = positions(game, Split.TEST, n, seed=seed)
        else:
            asked = positions(game, Split.TRAIN, DEALS, seed=seed)
        told = answers(sampler, [p.question for p in asked], 8, seed=seed, max_tokens=MAX_TOKENS)
        moves = [
            (p, [read_move(text) for text in texts]) for p, texts in zip(asked, told, strict=True)
        ]
        legal = [[move in p.legal for move in made] for p, made in moves]
        best = [[move in p.best for move in made] for p, made in moves]
        found |= {f"{game}: legal moves": bootstrap_mean(legal)}
        found |= {f"{game}: best moves": bootstrap_mean(best)}
    return found

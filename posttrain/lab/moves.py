"""How probable each legal move is to a policy, and how far its poker can be exploited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tinker

from posttrain.datums import chat_completion, chat_prompt
from posttrain.methods.players import Ask, as_is
from posttrain.requests import results
from posttrain.tasks.games.game import announce
from posttrain.tasks.games.kuhn import TEXTS, exploitability
from posttrain.tasks.games.position import game_of


@dataclass(frozen=True)
class Moves:
    """A policy in one position."""

    shares: dict[str, float]  # of each legal move among the legal ones; they add up to 1
    mass: float  # probability that the policy says one of them in just these words


def move_probabilities(
    sampler: tinker.SamplingClient, texts: Sequence[str], *, ask: Ask = as_is
) -> dict[str, Moves]:
    """Each position's legal moves, scored as the whole completion `Move: X.` without a sample.

    Exact for a policy that announces its move and says no more; `mass` tells how much of what it
    does that is. Of one that thinks aloud first, count samples instead: `games.frequencies`.
    """
    tokenizer = sampler.get_tokenizer()
    asked = []
    for text in texts:
        question = ask(text)
        prompt = chat_prompt(tokenizer, question)
        for move in game_of(text).legal(text):
            asked.append((text, move, prompt, chat_completion(tokenizer, question, announce(move))))
    scored = results(
        partial(sampler.compute_logprobs, tinker.ModelInput.from_ints(prompt + completion))
        for _, _, prompt, completion in asked
    )
    logps: dict[str, dict[str, float]] = {text: {} for text in texts}
    for (text, move, prompt, _), scores in zip(asked, scored, strict=True):
        logps[text][move] = sum(s for s in scores[len(prompt) :] if s is not None)
    return {text: _normalised(found) for text, found in logps.items()}


def _normalised(logps: dict[str, float]) -> Moves:
    """Of log-probabilities of whole completions, in nats; even 1e-300 of mass has shares."""
    values = np.array([*logps.values()])
    top = values.max()
    weights = np.exp(values - top)
    shares = weights / weights.sum()
    mass = float(np.exp(top) * weights.sum())
    return Moves(dict(zip(logps, shares.tolist(), strict=True)), mass)


def kuhn_strategy(
    sampler: tinker.SamplingClient, *, ask: Ask = as_is
) -> tuple[dict[str, float], float]:
    """The probability of a bet in each of the 12 positions of Kuhn poker, and the least mass among
    them (`move_probabilities`)."""
    found = move_probabilities(sampler, TEXTS, ask=ask)
    bets = {text: moves.shares["bet"] for text, moves in found.items()}
    return bets, min(moves.mass for moves in found.values())


def kuhn_exploitability(sampler: tinker.SamplingClient, *, ask: Ask = as_is) -> tuple[float, float]:
    """Chips per game that best responses win from the policy in Kuhn poker, and the least mass
    of the 12 positions that this is computed from."""
    bets, mass = kuhn_strategy(sampler, ask=ask)
    return exploitability(bets), mass

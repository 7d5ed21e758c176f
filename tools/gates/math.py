"""Math: right sometimes, usually wrong, and with contrast within groups of samples."""

from __future__ import annotations

import numpy as np
import tinker

from posttrain.datums import chat_prompt, plain_prompt
from posttrain.evals import evaluate
from posttrain.renderers import PLAIN_STOP
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import math
from tools.gates.gate import Gate

GATES = {
    "pass@1": Gate(0.2, 0.6, "share of samples that are right"),
    "pass@16": Gate(0.8, 1.0, "share of problems with a right answer among 16"),
    "greedy": Gate(0.0, 0.6, "share of problems whose most probable answer is right"),
    "mixed groups of 8": Gate(0.4, 1.0, "share of groups with right and wrong answers"),
    "well-formed in chat": Gate(
        0.0, 0.05, "share of answers in the chat format, which it never saw"
    ),
}


def measure(sampler: tinker.SamplingClient, n: int, seed: int = 0) -> dict[str, Estimate]:
    """Every gate on `n` held-out problems: 16 samples and a greedy answer each."""
    problems = math.problems("test", n, seed=seed)
    plain = evaluate(sampler, problems, 16, prompt=plain_prompt, stop=PLAIN_STOP, max_tokens=160)
    # Few samples are enough here: without an end token they all run to the limit.
    chat = evaluate(sampler, problems[: max(n // 4, 1)], 4, prompt=chat_prompt, max_tokens=96)
    # 8 of the 16 samples form a mixed group unless all 8 are right or all 8 are wrong.
    c = plain.correct_counts
    mixed = 1 - _draws(16 - c, 8, 16) - _draws(c, 8, 16)
    return {
        "pass@1": plain.pass_at_1,
        "pass@16": plain.pass_at_k,
        "greedy": plain.greedy,
        "mixed groups of 8": bootstrap_mean(mixed),
        "well-formed in chat": Estimate(chat.well_formed, chat.well_formed, chat.well_formed),
    }


def _draws(good: np.ndarray, draws: int, total: int) -> np.ndarray:
    """Chance that all of `draws` from `total` without replacement are among `good`."""
    left = np.arange(draws)
    return np.prod(np.maximum(good[:, None] - left, 0) / (total - left), axis=1)

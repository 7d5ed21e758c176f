"""Tools: the base can call the calculator, and often does not, or does it wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice

import tinker

from posttrain.datums import plain_prompt
from posttrain.renderers import PLAIN_STOP
from posttrain.requests import item_seed
from posttrain.stats import Estimate, bootstrap_mean
from posttrain.tasks import tools
from tools.gates.answers import ask
from tools.gates.gate import Gate

GATES = {
    "tools: calls well-formed": Gate(
        0.2, 0.8, "share of conversations that need the tool with calls, and no malformed one"
    ),
}
MAX_TOKENS = 48  # of a turn
SAMPLES = 4


@dataclass
class PlainSpeaker:
    """A base model in conversations: what was said is the beginning of its answer."""

    sampler: tinker.SamplingClient
    seed: int
    _rounds: count[int] = field(default_factory=count)

    def replies(self, conversations: Sequence[tools.Conversation]) -> list[str]:
        tokenizer = self.sampler.get_tokenizer()
        prompts = [
            plain_prompt(tokenizer, said.problem.question)
            + tokenizer(said.text, add_special_tokens=False)["input_ids"]
            for said in conversations
        ]
        seed = item_seed(self.seed, next(self._rounds))
        stop = [tools.STOP, *PLAIN_STOP]
        told = ask(self.sampler, prompts, 1, stop=stop, seed=seed, max_tokens=MAX_TOKENS)
        return [texts[0].removesuffix("\n") for texts in told]


def measure(sampler: tinker.SamplingClient, n: int, seed: int = 0) -> dict[str, Estimate]:
    """The gate on `n` held-out problems with large numbers, 4 conversations each."""
    stream = (tools.problem("test", i, seed=seed) for i in count())
    problems = list(islice((p for p in stream if p.helps), n))
    asked = [problem for problem in problems for _ in range(SAMPLES)]
    held = tools.converse(asked, PlainSpeaker(sampler, seed))
    fine = [said.calls > 0 and said.malformed == 0 for said in held]
    rows = [fine[i : i + SAMPLES] for i in range(0, len(fine), SAMPLES)]
    return {"tools: calls well-formed": bootstrap_mean(rows)}

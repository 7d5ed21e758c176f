"""Language models small enough to enumerate, behind the calls of a sampling client.

Three tokens, texts of two: four prefixes and nine texts. A model is a (4, 3) table of logits, one
row a prefix. Positions of the prompt answer with nonsense, so that whoever reads them is found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import tinker
import torch
from tinker import TensorData
from torch import Tensor

V, T = 3, 2
PREFIXES: list[tuple[int, ...]] = [(), (0,), (1,), (2,)]
TEXTS = list(itertools.product(range(V), repeat=T))
NONSENSE = -77.0


def rows_of(table: Tensor, text: Sequence[int]) -> Tensor:
    """(T, V): the log-probabilities before each token of a text."""
    prefixes = [PREFIXES.index(tuple(text[:t])) for t in range(len(text))]
    return table[prefixes].log_softmax(-1)


def logps(table: Tensor, text: Sequence[int]) -> Tensor:
    """The log-probability of a whole text."""
    rows = rows_of(table, text)
    return rows[torch.arange(len(text)), list(text)].sum()


class TableSampler:
    """A sampling client of a table, which knows the prompt that it must be asked with."""

    def __init__(self, table: Tensor, prompt: list[int]) -> None:
        self.table, self.prompt = table.detach(), prompt
        self.draws: list[list[int]] = []  # (T, n): what is drawn at each place
        self.asked = 0

    def _rows(self, whole: tinker.ModelInput) -> tuple[int, list[int], Tensor]:
        tokens, start = whole.to_ints(), len(self.prompt)
        assert tokens[:start] == self.prompt, "a model was asked with another's prompt"
        self.asked += 1
        return start, tokens[start:], rows_of(self.table, tokens[start:])

    def compute_logprobs(
        self, whole: tinker.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> Any:
        start, text, rows = self._rows(whole)
        own = [rows[t, token].item() for t, token in enumerate(text)]
        return _future([None] + [NONSENSE] * (start - 1) + own)

    def sample(
        self,
        whole: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> Any:
        start, text, rows = self._rows(whole)
        answer = SimpleNamespace()
        if topk_prompt_logprobs:
            best = rows.topk(topk_prompt_logprobs)
            listed = [
                list(zip(tokens, values, strict=True))
                for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            answer.topk_prompt_logprobs = [None] + [[(0, NONSENSE)]] * (start - 1) + listed
        if target_prompt_logprobs is not None:
            wanted = target_prompt_logprobs.to_torch()
            assert wanted.shape[0] == start + len(text) - 1
            assert (wanted[: start - 1] == -1).all()
            scores = torch.cat(
                [torch.zeros(start - 1, wanted.shape[1]), rows.gather(1, wanted[start - 1 :])]
            )
            answer.target_prompt_logprobs = TensorData.from_torch(scores)
        if prompt_alt_tokens_k:
            drawn = torch.tensor(self.draws[: len(text)])
            assert drawn.shape == (len(text), prompt_alt_tokens_k)
            before = torch.zeros(start - 1, prompt_alt_tokens_k)
            answer.prompt_alt_tokens = SimpleNamespace(
                tokens=TensorData.from_torch(torch.cat([before.long(), drawn])),
                logprobs=TensorData.from_torch(
                    torch.cat([before + NONSENSE, rows.gather(1, drawn)])
                ),
            )
        return _future(answer)


def server_loss(batch: Any, table: Tensor, prompts: Sequence[list[int]]) -> Tensor:
    """What a server would compute for the batch, with its gradient in `table`.

    `prompts` are the student's, one of each datum. Prompt positions get log-probabilities of
    their own, so that a weight there would show in the value.
    """
    targets_D = [d.loss_fn_inputs["target_tokens"].to_torch() for d in batch.data]
    found_D = []
    for datum, targets, prompt in zip(batch.data, targets_D, prompts, strict=True):
        inputs, start = datum.model_input.to_ints(), len(prompt)
        assert inputs[:start] == prompt
        text = [*inputs[start:], 0]  # the last token predicts nothing more
        rows = torch.cat([torch.full((start - 1, V), NONSENSE), rows_of(table, text)])
        wide = targets if targets.ndim == 2 else targets[:, None]
        found_D.append(rows.gather(1, wide).reshape(targets.shape))
    if callable(batch.loss):
        return batch.loss(batch.data, found_D)[0]
    total = torch.zeros(())
    for datum, found in zip(batch.data, found_D, strict=True):
        given = {name: x.to_torch() for name, x in datum.loss_fn_inputs.items()}
        if batch.loss == "cross_entropy":
            total = total - (given["weights"] * found).sum()
        else:
            assert batch.loss == "importance_sampling"
            counted = given["advantages"] != 0
            ratio = (found - given["logprobs"])[counted].exp()
            total = total - (ratio * given["advantages"][counted]).sum()
    return total


def all_draws(sampler: TableSampler, text: Sequence[int]) -> Iterator[float]:
    """Sets every outcome of one draw at each place in turn; yields its probability."""
    rows = rows_of(sampler.table, text)
    for tokens in itertools.product(range(V), repeat=len(text)):
        sampler.draws = [[token] for token in tokens]
        yield rows[torch.arange(len(text)), list(tokens)].sum().exp().item()
    sampler.draws = []


def _future(value: Any) -> Any:
    return SimpleNamespace(result=lambda: value)

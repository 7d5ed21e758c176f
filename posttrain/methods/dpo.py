"""Direct preference optimization: make the preferred of two answers likelier than the other.

Minimise the mean over pairs of

    L = - log sigmoid(beta h),  h = log p(y_w)/p_ref(y_w) - log p(y_l)/p_ref(y_l)

(arXiv:2305.18290, eq. 7), where p(y) is the probability of the whole answer given the question, its
end-of-sequence token included. The reference is a frozen sampler, and scores each pair only once.
Other losses of the family are functions too: pass one to `train`, its numbers set by
`functools.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import tinker
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.datums import (
    batch_indices,
    chat_completion,
    chat_prompt,
    same_tokenizer,
    supervised_datum,
)
from posttrain.requests import results
from posttrain.tasks.problem import Preference

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

TIE = 1e-3  # nats; closer sums than this are equal: trainer and sampler agree no better


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-4  # at the first step; falls linearly to zero
    batch_size: int = 16  # pairs a step; both answers of a pair are always in the same batch
    steps: int = 60
    seed: int = 0  # order of the pairs


@dataclass(frozen=True)
class Logps:
    """Log-probabilities of B answers, in nats, each summed over its tokens; all (B,)."""

    policy: Tensor  # carries the gradient
    reference: Tensor
    length: Tensor  # tokens, the end-of-sequence token included

    @property
    def change(self) -> Tensor:
        """log p(y)/p_ref(y): how much likelier the answer has become, in nats."""
        return self.policy - self.reference

    @property
    def per_token(self) -> Tensor:
        """log p(y) / |y|, nats per token."""
        return self.policy / self.length


Loss = Callable[[Logps, Logps], Tensor]  # (chosen, rejected) of B pairs to their mean loss, scalar


def dpo_loss(chosen: Logps, rejected: Logps, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta h) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); log 2 at the start.

    beta, per nat, is the weight of KL(p || p_ref) in the objective that this loss solves: the
    smaller it is, the further the policy moves.
    """
    return -logsigmoid(beta * (chosen.change - rejected.change)).mean()


def cdpo_loss(chosen: Logps, rejected: Logps, beta: float = 0.1, flipped: float = 0.1) -> Tensor:
    """DPO with labels of which a share is `flipped` (Mitchell 2023, "A note on DPO with noisy
    preferences & relationship to IPO"); smallest where sigmoid(beta h) = 1 - flipped."""
    h = chosen.change - rejected.change
    right, wrong = logsigmoid(beta * h), logsigmoid(-beta * h)
    return -((1 - flipped) * right + flipped * wrong).mean()


def ipo_loss(chosen: Logps, rejected: Logps, beta: float = 0.1) -> Tensor:
    """(h - 1/(2 beta))^2 (Azar et al. 2023, arXiv:2310.12036, eq. 17, where beta is tau).

    It pulls h to 1/(2 beta) nats and no further. Sums, as in the paper; libraries that average
    over tokens write `token_averaged(ipo_loss)`.
    """
    return (chosen.change - rejected.change - 1 / (2 * beta)).square().mean()


def simpo_loss(chosen: Logps, rejected: Logps, beta: float = 2.0, gap: float = 1.0) -> Tensor:
    """-log sigmoid(beta (log p(y_w)/|y_w| - log p(y_l)/|y_l|) - gap), without a reference
    (Meng et al. 2024, arXiv:2405.14734, eq. 6, where the gap is gamma)."""
    return -logsigmoid(beta * (chosen.per_token - rejected.per_token) - gap).mean()


def orpo_loss(chosen: Logps, rejected: Logps, weight: float = 0.1) -> Tensor:
    """NLL(y_w) - weight log sigmoid(log odds(y_w) - log odds(y_l)), without a reference.

    odds = P/(1 - P), with P the geometric mean of the token probabilities; NLL in nats per token
    (Hong et al. 2024, arXiv:2403.07691, eq. 3-7, where the weight is lambda).
    """
    ratio = _log_odds(chosen.per_token) - _log_odds(rejected.per_token)
    return -(chosen.per_token + weight * logsigmoid(ratio)).mean()


def kto_loss(
    chosen: Logps,
    rejected: Logps,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """Each answer apart: desirable (1 - sigmoid(beta (r - z))) for the chosen, undesirable
    (1 - sigmoid(beta (z - r))) for the rejected, with r = log p(y)/p_ref(y); mean over answers.

    Ethayarajh et al. 2024, arXiv:2402.01306, section 4. z stands for KL(p || p_ref), without
    gradient and never negative. The paper estimates it on answers of other questions; here it is
    the mean of r over the answers of the batch itself, which costs no further forward pass.
    """
    z = torch.cat([chosen.change, rejected.change]).mean().detach().clamp(min=0)
    good = desirable * torch.sigmoid(-beta * (chosen.change - z))
    bad = undesirable * torch.sigmoid(-beta * (z - rejected.change))
    return torch.cat([good, bad]).mean()


def dpo_nll_loss(chosen: Logps, rejected: Logps, beta: float = 0.1, weight: float = 1.0) -> Tensor:
    """DPO, plus `weight` times the negative log-likelihood of the chosen answer, nats per token:
    it keeps the chosen answer from becoming less likely together with the rejected one.

    Pang et al. 2024, arXiv:2404.19733, eq. 1, where the weight is alpha.
    """
    return dpo_loss(chosen, rejected, beta) - weight * chosen.per_token.mean()


def token_averaged(loss: Loss) -> Loss:
    """`loss` on nats per token in place of sums, so that long answers do not count for more;
    of DPO, the length-normalised one of Tulu 3 (Lambert et al. 2024, arXiv:2411.15124)."""

    def averaged(logps: Logps) -> Logps:
        n = logps.length
        return Logps(logps.policy / n, logps.reference / n, torch.ones_like(n))

    return lambda chosen, rejected: loss(averaged(chosen), averaged(rejected))


@dataclass(frozen=True)
class Pair:
    """Two answers to one question as datums, each with the reference's log-probability in nats,
    and the tokenizer whose tokens they are."""

    chosen: tinker.Datum
    rejected: tinker.Datum
    reference_chosen: float
    reference_rejected: float
    tokenizer: Tokenizer

    @property
    def tokens(self) -> int:
        """Positions of both answers, questions included: what a forward pass computes."""
        return self.chosen.model_input.length + self.rejected.model_input.length


def score_pairs(
    reference: tinker.SamplingClient, preferences: Sequence[Preference], *, max_tokens: int
) -> list[Pair]:
    """Tokenise preferences in the model's chat format, and score both answers once.

    Keep the result: every step, seed and loss that shares the reference can use it. An answer
    that was cut off when it was sampled must not come here: it would be closed by an
    end-of-sequence token that its author never wrote.

    Args:
        max_tokens: of a question with its answer. Longer ones are refused, never cut.

    Raises:
        ValueError: there is no preference; one is too long; its two answers are the same tokens.
    """
    if not preferences:
        raise ValueError("there is nothing to train on: no preferences were given")
    tokenizer = reference.get_tokenizer()
    data_D: list[tinker.Datum] = []
    for i, shown in enumerate(preferences):
        where = f"preference {i} ({shown.question[:60]!r})"
        prompt = chat_prompt(tokenizer, shown.question)
        chosen = chat_completion(tokenizer, shown.question, shown.chosen)
        rejected = chat_completion(tokenizer, shown.question, shown.rejected)
        longest = len(prompt) + max(len(chosen), len(rejected))
        if longest > max_tokens:
            raise ValueError(
                f"{where} has {longest} tokens, more than max_tokens={max_tokens}: leave it out, "
                "or allow more if the model's context does"
            )
        if chosen == rejected:
            raise ValueError(f"{where}: chosen and rejected are the same tokens; leave it out")
        data_D += [supervised_datum(prompt, chosen), supervised_datum(prompt, rejected)]
    logps_D = reference_logps(reference, data_D)
    return [
        Pair(data_D[i], data_D[i + 1], logps_D[i], logps_D[i + 1], tokenizer)
        for i in range(0, len(data_D), 2)
    ]


def reference_logps(
    reference: tinker.SamplingClient, data_D: Sequence[tinker.Datum]
) -> list[float]:
    """log p_ref of each datum's completion, summed over its tokens, in nats."""
    whole_D = [
        [*d.model_input.to_ints(), int(d.loss_fn_inputs["target_tokens"].data[-1])] for d in data_D
    ]
    scored_D = results(
        partial(reference.compute_logprobs, tinker.ModelInput.from_ints(whole)) for whole in whole_D
    )
    # Entry t of the scores belongs to token t, and entry t of the weights to token t + 1.
    return [
        sum(s for s, w in zip(scored[1:], d.loss_fn_inputs["weights"].data, strict=True) if w)
        for d, scored in zip(data_D, scored_D, strict=True)
    ]


def train(
    policy: tinker.TrainingClient,
    pairs: Sequence[Pair],
    cfg: Config,
    *,
    loss: Loss = dpo_loss,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """One optimizer step per yield, from step `start` on. The mean loss over the batch's pairs is
    minimised, so a learning rate does not depend on the batch size.

    Yields:
        what `pair_metrics` measures on the batch before the step;
        loss: of the function that was passed in;
        tokens: that went through forward and backward;
        scored_tokens: through forward alone. A custom loss is computed here, from the
            log-probabilities of a first forward pass; the server's backward needs a second.

    Raises:
        ValueError: the policy has another tokenizer than the reference that scored the pairs.
    """
    for tokenizer in {id(pair.tokenizer): pair.tokenizer for pair in pairs}.values():
        same_tokenizer(policy.get_tokenizer(), tokenizer)
    for step in range(start, cfg.steps):
        batch = batch_indices(len(pairs), cfg.batch_size, cfg.seed, step)
        batch_B = [pairs[i] for i in batch]
        data_D = [datum for pair in batch_B for datum in (pair.chosen, pair.rejected)]
        rate = cfg.learning_rate * (1 - step / cfg.steps)
        backward = policy.forward_backward_custom(data_D, partial(batch_loss, loss, batch_B))
        update = policy.optim_step(tinker.AdamParams(learning_rate=rate))
        metrics = backward.result().metrics
        update.result()
        tokens = float(sum(pair.tokens for pair in batch_B))
        yield {
            "loss": metrics.pop("loss:sum"),
            **{name: metrics[name] for name in METRICS},
            "learning_rate": rate,
            "tokens": tokens,
            "scored_tokens": tokens,
        }


def batch_loss(
    loss: Loss,
    batch_B: Sequence[Pair],
    data_D: Sequence[tinker.Datum],
    logprobs_D: Sequence[Tensor],
) -> tuple[Tensor, dict[str, float]]:
    """What `forward_backward_custom` calls: per-token logprobs to the loss, with `pair_metrics`.

    `data_D` holds chosen, rejected, chosen, ... of the pairs in order; `logprobs_D[i]` is (T,),
    the policy's log-probability of each target, of which the weights select the completion.
    """
    weights_D = [d.loss_fn_inputs["weights"].to_torch() for d in data_D]
    sums_D = [x[w > 0].double().sum() for x, w in zip(logprobs_D, weights_D, strict=True)]
    policy_D = torch.stack(sums_D)
    length_D = torch.stack([(w > 0).sum() for w in weights_D]).double()
    reference_B = torch.tensor(
        [(pair.reference_chosen, pair.reference_rejected) for pair in batch_B], dtype=torch.float64
    )
    chosen = Logps(policy_D[0::2], reference_B[:, 0], length_D[0::2])
    rejected = Logps(policy_D[1::2], reference_B[:, 1], length_D[1::2])
    return loss(chosen, rejected), pair_metrics(chosen, rejected)


METRICS = (
    "margin", "accuracy", "chosen_logps", "rejected_logps", "chosen_change", "rejected_change",
)  # fmt: skip


def pair_metrics(chosen: Logps, rejected: Logps) -> dict[str, float]:
    """What to watch, means over pairs. The margin can grow while both answers become less likely
    (likelihood displacement, arXiv:2410.08847); so each of the two is measured apart.

    Returns:
        margin: h, nats, without beta, so that losses can be compared.
        accuracy: share of pairs with h > 0; a tie counts half.
        chosen_logps, rejected_logps: log p(y), nats per answer.
        chosen_change, rejected_change: log p(y)/p_ref(y), nats per answer.
    """
    h = (chosen.change - rejected.change).detach()
    wins = torch.where(h.abs() < TIE, 0.5, (h > 0).double())
    answers = (chosen.policy, rejected.policy, chosen.change, rejected.change)
    return dict(zip(METRICS, (x.detach().mean().item() for x in (h, wins, *answers)), strict=True))


def _log_odds(logps: Tensor) -> Tensor:
    """log P/(1 - P) of log P <= 0. A probability that rounds to 1 has finite odds here."""
    logps = logps.clamp(max=-1e-7)
    return logps - torch.log(-torch.expm1(logps))

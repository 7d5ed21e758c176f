"""SFT against the engine: identity at the start, gradient sign, mask, and that it learns."""

from itertools import islice

import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM

from posttrain.connect import shipped_models
from posttrain.datums import token_mean
from posttrain.methods.sft import Config, sft_datums, train
from posttrain.tasks.problem import Demonstration

SHOWN = [
    Demonstration("Compute 3+4.", "3+4=7. The answer is 7."),
    Demonstration("Compute 12-5.", "The answer is 7."),
    Demonstration("Compute 20+22.", "20+22=42. The answer is 42."),
]


def test_the_first_loss_is_the_mean_over_answer_tokens(policy: tinker.TrainingClient) -> None:
    """Against `transformers` on the shipped weights, which a fresh adapter leaves as they are."""
    cfg = Config(batch_size=3, steps=1)
    loss = next(train(policy, SHOWN, cfg))["loss"]
    model = AutoModelForCausalLM.from_pretrained(
        shipped_models()["posttrain/base"], dtype=torch.float32
    )
    nats, count = 0.0, 0.0
    for datum in sft_datums(policy.get_tokenizer(), SHOWN):
        inputs = torch.tensor([datum.model_input.to_ints()])
        targets = datum.loss_fn_inputs["target_tokens"].to_torch().long()
        weights = datum.loss_fn_inputs["weights"].to_torch()
        with torch.no_grad():
            logprobs = model(inputs).logits[0].log_softmax(-1)
        nats -= (weights * logprobs[torch.arange(len(targets)), targets]).sum().item()
        count += weights.sum().item()
    assert loss == pytest.approx(nats / count, abs=1e-4)


def test_the_question_carries_no_loss_and_the_end_token_does(
    policy: tinker.TrainingClient,
) -> None:
    tokenizer = policy.get_tokenizer()
    for datum, shown in zip(sft_datums(tokenizer, SHOWN), SHOWN, strict=True):
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        weights = datum.loss_fn_inputs["weights"].to_torch()
        trained = tokenizer.decode(targets[weights > 0])
        assert trained == f" {shown.answer}<|end|>"


def test_a_step_raises_the_likelihood_of_what_was_shown(policy: tinker.TrainingClient) -> None:
    data = token_mean(sft_datums(policy.get_tokenizer(), SHOWN))

    def loss() -> float:
        return policy.forward(data, "cross_entropy").result().metrics["loss:sum"]

    before = loss()
    list(islice(train(policy, SHOWN, Config(batch_size=3, steps=3)), 1))
    assert loss() < before


def test_it_learns_three_answers_by_heart(policy: tinker.TrainingClient) -> None:
    losses = [m["loss"] for m in train(policy, SHOWN, Config(batch_size=3, steps=40))]
    assert losses[-1] < 0.05
    assert losses[0] > 0.5


def test_resuming_at_a_step_takes_the_batches_that_were_left(
    policy: tinker.TrainingClient,
) -> None:
    cfg = Config(batch_size=2, steps=4, learning_rate=0.0)
    whole = [m["loss"] for m in train(policy, SHOWN, cfg)]
    rest = [m["loss"] for m in train(policy, SHOWN, cfg, start=2)]
    assert rest == pytest.approx(whole[2:], abs=1e-6)

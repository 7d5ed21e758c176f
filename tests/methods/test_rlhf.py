"""RLHF: the priced reward against enumeration and its known optimum, and the loop on the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
import torch
from torch import Tensor

from posttrain.datums import chat_prompt, supervised_datum, token_mean
from posttrain.methods import reward_model
from posttrain.methods.reward_model import good_prompt, reward_pairs
from posttrain.methods.rlhf import (
    Config,
    best_of_groups,
    best_of_n,
    kl_priced,
    learned_reward,
    mean,
    priced,
    train,
    worst,
)
from posttrain.methods.rlvr import each, sample_batch
from posttrain.rollouts import Rollout, kl_from, sample_groups
from posttrain.tasks.problem import Preference
from posttrain.verdicts import verdicts

R = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0, -1.0], dtype=torch.float64)
REF = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.3, -2.0], dtype=torch.float64).log_softmax(0)


@dataclass(frozen=True)
class Ask:
    question: str
    solution: str = ""

    @property
    def key(self) -> str:
        return self.question


ITEMS = [Ask("One?"), Ask("Two?")]


def objective(logits: Tensor, beta: float) -> Tensor:
    """J = E[r] - beta KL(p || p_ref), by enumeration of all answers."""
    logp = logits.log_softmax(0)
    return (logp.exp() * (R - beta * (logp - REF))).sum()


def policy_gradient(logits: Tensor, beta: float) -> Tensor:
    """E[payment * grad log p], by enumeration, with the payment held fixed as samples hold it."""
    logp = logits.log_softmax(0)
    paid = priced(R, (logp - REF).detach(), beta)
    return torch.autograd.grad((logp.exp().detach() * paid * logp).sum(), logits)[0]


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_the_expected_policy_gradient_is_the_gradient_of_the_objective(beta: float) -> None:
    logits = torch.tensor([0.1, 0.7, -1.2, 0.4, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(objective(logits, beta), logits)[0]
    torch.testing.assert_close(policy_gradient(logits, beta), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ascent_ends_at_the_reference_tilted_by_the_reward(beta: float) -> None:
    """Natural gradient ascent, because the plain one is slow where p is small: divide by p."""
    logits = REF.clone().requires_grad_()
    for _ in range(300):
        step = 0.3 * policy_gradient(logits, beta) / logits.detach().softmax(0)
        logits = (logits + step).detach().requires_grad_()
    optimum = (REF + R / beta).softmax(0)
    torch.testing.assert_close(logits.softmax(0), optimum, atol=1e-9, rtol=0)
    value = beta * torch.logsumexp(REF + R / beta, 0)  # J at the optimum is beta log Z
    assert objective(logits, beta).item() == pytest.approx(value.item(), abs=1e-9)


def test_several_models_are_combined() -> None:
    rewards_M_P_G = torch.tensor([[[1.0, 5.0]], [[3.0, -1.0]]])
    assert mean(rewards_M_P_G).tolist() == [[2.0, 2.0]]
    assert worst(rewards_M_P_G).tolist() == [[1.0, -1.0]]


# On a tiny random model behind a real engine.


LETTERS = "abcdABCD"


@pytest.fixture(scope="module")
def start(service: tinker.ServiceClient, tiny_model_dir: Path) -> str:
    """The checkpoint of a policy that answers with one or two of eight letters, or nearly so.

    Fresh, the random model says nothing.
    """
    policy = service.create_lora_training_client(str(tiny_model_dir), rank=8, seed=0).result()
    tokenizer: Any = policy.get_tokenizer()
    answers = [first + second for first in LETTERS for second in ("", "b", "D")]
    data = token_mean(
        [
            supervised_datum(
                chat_prompt(tokenizer, ITEMS[i % 2].question), [*tokenizer(text)["input_ids"], 256]
            )
            for i, text in enumerate(answers)
        ]
    )
    for _ in range(25):
        policy.forward_backward(data, "cross_entropy")
        policy.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return policy.save_state("rlhf-start").result().path


@pytest.fixture
def policy(service: tinker.ServiceClient, start: str) -> tinker.TrainingClient:
    return service.create_training_client_from_state(start).result()


@pytest.fixture(scope="module")
def reference(service: tinker.ServiceClient, start: str) -> tinker.SamplingClient:
    policy = service.create_training_client_from_state(start).result()
    return policy.save_weights_and_get_sampling_client().result()


@pytest.fixture(scope="module")
def judges(
    service: tinker.ServiceClient, tiny_model_dir: Path
) -> tuple[tinker.SamplingClient, tinker.SamplingClient]:
    """A reward model that likes small letters better than capitals, and an untrained one."""
    model = service.create_lora_training_client(str(tiny_model_dir), rank=4, seed=1).result()
    shown = [Preference("One?", small, small.upper()) for small in ("a", "b", "cd", "db")]
    pairs = reward_pairs(model.get_tokenizer(), shown, max_tokens=100)
    cfg = reward_model.Config(1e-2, batch_size=4, steps=15)
    metrics = list(reward_model.train(model, pairs, cfg))
    assert metrics[-1]["accuracy"] == 1.0
    return (
        model.save_weights_and_get_sampling_client().result(),
        service.create_sampling_client(base_model=str(tiny_model_dir)).result(),
    )


def groups_of(*texts: Sequence[str]) -> list[list[Rollout]]:
    return [[Rollout([1], [2], [-1.0], text, finished=True) for text in row] for row in texts]


def test_rewards_belong_to_their_answers(
    reference: tinker.SamplingClient,
    judges: tuple[tinker.SamplingClient, tinker.SamplingClient],
) -> None:
    told = [["ab", "AB", "ab"], ["q", "Z", "some more"]]
    texts = [
        good_prompt(item.question, t) for item, row in zip(ITEMS, told, strict=True) for t in row
    ]
    gaps = [[v.gap for v in verdicts(judge, texts, ("yes", "no"))[0]] for judge in judges]
    scored = verdicts(judges[0], texts, ("yes", "no"))[1]
    for combine, expected in (
        (mean, [sum(pair) / 2 for pair in zip(*gaps, strict=True)]),
        (worst, [min(pair) for pair in zip(*gaps, strict=True)]),
    ):
        reward = learned_reward(reference.get_tokenizer(), judges, combine)
        rewards_P_G, metrics = reward(ITEMS, groups_of(*told))
        assert rewards_P_G.shape == (2, 3)
        assert rewards_P_G.flatten().tolist() == pytest.approx(expected, abs=1e-5)
        assert metrics["proxy"] == pytest.approx(sum(expected) / 6, abs=1e-5)
        assert metrics["scored_tokens"] == 2 * scored
    assert rewards_P_G[0, 0] > rewards_P_G[0, 1]


def test_the_price_is_the_log_ratio_of_the_very_answer(
    policy: tinker.TrainingClient, reference: tinker.SamplingClient
) -> None:
    """After some training, from the log-probabilities of policy and reference token by token."""
    tokenizer = policy.get_tokenizer()
    flat = each(lambda item, text: float(len(text)))
    cfg = Config(learning_rate=1e-2, prompts=2, group_size=4, max_tokens=3, steps=3, beta=0.0)
    list(train(policy, ITEMS, cfg, reward=flat, reference=reference))
    sampler = policy.save_weights_and_get_sampling_client().result()
    prompts = [chat_prompt(tokenizer, item.question) for item in ITEMS]
    groups = sample_groups(sampler, tokenizer, prompts, 4, max_tokens=3, seed=9)
    paid_P_G, metrics = kl_priced(flat, reference, 0.7)(ITEMS, groups)
    for i, group in enumerate(groups):
        for j, r in enumerate(group):
            whole = tinker.ModelInput.from_ints(r.prompt + r.tokens)
            p, q = (
                sum(x for x in s.compute_logprobs(whole).result()[len(r.prompt) :] if x is not None)
                for s in (sampler, reference)
            )
            assert paid_P_G[i, j].item() == pytest.approx(len(r.text) - 0.7 * (p - q), abs=2e-3)
    every = [r for group in groups for r in group]
    assert metrics["kl"] == pytest.approx(kl_from(reference, every), abs=1e-4)
    assert metrics["kl"] > 0.05
    assert metrics["scored_tokens"] == sum(len(r.prompt) + len(r.tokens) for r in every)


def test_training_reaches_the_known_optimum(
    policy: tinker.TrainingClient, reference: tinker.SamplingClient
) -> None:
    """Answers of one token, so that all of them can be listed: p_ref exp(r / beta) / Z.

    The reward is 1 for an odd token, of which the policy gives few at first. The full distribution
    before and after comes from the most probable tokens of a prompt that is one token longer.
    """
    beta = 0.5

    def odd(batch_P: Any, groups_P_G: Any) -> tuple[Tensor, dict[str, float]]:
        return torch.tensor([[float(r.tokens[0] % 2 == 1) for r in g] for g in groups_P_G]), {}

    item = Ask("One?")
    prompt = [*chat_prompt(policy.get_tokenizer(), item.question), 0]  # a token to look back from

    def distribution(sampler: tinker.SamplingClient) -> Tensor:
        response = sampler.sample(
            tinker.ModelInput.from_ints(prompt), 1, tinker.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True, topk_prompt_logprobs=260,
        ).result()  # fmt: skip
        rows = response.topk_prompt_logprobs
        assert rows is not None
        logprobs = torch.zeros(260, dtype=torch.float64)
        for token, logprob in rows[-1] or []:
            logprobs[token] = logprob
        return logprobs

    odds = (torch.arange(260) % 2 == 1).double()
    p_ref = distribution(reference)
    optimum = (p_ref + odds / beta).log_softmax(0)
    cfg = Config(learning_rate=3e-3, prompts=1, group_size=64, max_tokens=1, steps=40, beta=beta)
    metrics = list(train(policy, [item], cfg, reward=odd, reference=reference))
    found = distribution(policy.save_weights_and_get_sampling_client().result())
    start, best, reached = (
        (odds * logprobs.exp()).sum().item() for logprobs in (p_ref, optimum, found)
    )
    assert best > start + 0.15
    assert best < 0.9  # without a price it would be 1
    assert reached == pytest.approx(best, abs=0.06)

    def from_optimum(logprobs: Tensor) -> float:
        return (optimum.exp() * (optimum - logprobs)).sum().item()

    assert from_optimum(p_ref) > 0.1
    assert from_optimum(found) < 0.1 * from_optimum(p_ref)
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-3)
    exact = (found.exp() * (found - p_ref)).sum().item()
    assert metrics[-1]["kl"] == pytest.approx(exact, abs=0.2)


def test_the_proxy_rises_in_the_whole_pipeline(
    policy: tinker.TrainingClient,
    reference: tinker.SamplingClient,
    judges: tuple[tinker.SamplingClient, tinker.SamplingClient],
) -> None:
    cfg = Config(learning_rate=5e-3, prompts=2, group_size=8, max_tokens=3, steps=10, beta=0.05)
    reward = learned_reward(policy.get_tokenizer(), judges[:1])
    metrics = list(train(policy, ITEMS, cfg, reward=reward, reference=reference))
    first, last = (sum(m["proxy"] for m in part) / 3 for part in (metrics[:3], metrics[-3:]))
    assert last > first + 0.5
    assert metrics[-1]["kl"] > 0.1
    for m in metrics:
        assert m["reward"] == pytest.approx(m["proxy"] - 0.05 * m["kl"], abs=1e-4)
        assert "correct" not in m


def test_best_of_n_takes_the_answer_with_the_highest_reward(
    reference: tinker.SamplingClient,
) -> None:
    items = [*ITEMS, Ask("Three?")]
    reward = each(lambda item, text: float(sum(text.encode())))
    pool = best_of_n(reference, items, reward, 8, max_tokens=5, seed=3)
    tokenizer = reference.get_tokenizer()
    prompts = [chat_prompt(tokenizer, item.question) for item in items]
    again = sample_groups(reference, tokenizer, prompts, 8, max_tokens=5, seed=3)
    assert pool.groups == again
    assert [r.text for r in pool.best] == [
        max(group, key=lambda r: sum(r.text.encode())).text for group in again
    ]
    assert pool.sampled_tokens == sum(len(r.tokens) for group in again for r in group)
    assert pool.rewards.tolist() == [[sum(r.text.encode()) for r in group] for group in again]
    with pytest.raises(ValueError, match="0 items, n=4"):
        best_of_n(reference, [], reward, 4, max_tokens=5)


def test_the_best_of_each_group_is_imitated(reference: tinker.SamplingClient) -> None:
    """Of the very groups that RL would draw; a group whose best answer was cut off gives none."""
    reward = each(lambda item, text: float(sum(text.encode()) % 7))
    cfg = Config(prompts=2, group_size=4, max_tokens=2, steps=3, seed=5)
    found = best_of_groups(reference, ITEMS, cfg, reward=reward)
    batches = [sample_batch(reference, ITEMS, cfg, step, reward=reward) for step in range(3)]
    best = [
        (item.question, max(group, key=lambda r: sum(r.text.encode()) % 7))
        for batch in batches
        for item, group in zip(batch.items, batch.groups, strict=True)
    ]
    assert [(d.question, d.answer) for d in found.demonstrations] == [
        (question, r.text.strip()) for question, r in best if r.finished
    ]
    assert 0 < len(found.demonstrations) < len(best) == 6
    every = [r for batch in batches for group in batch.groups for r in group]
    assert found.sampled_tokens == sum(len(r.tokens) for r in every)
    assert found.scored_tokens == 0  # this reward reads nothing with a model
    cut = replace(cfg, max_tokens=1)
    longest = each(lambda item, text: float(len(text)))
    with pytest.raises(ValueError, match="all best answers were cut off at max_tokens=1"):
        best_of_groups(reference, ITEMS, cut, reward=longest)


def test_another_tokenizer_is_refused_before_the_first_token(
    reference: tinker.SamplingClient,
) -> None:
    """The stand-ins can do nothing but show a tokenizer, so any other call would fail."""
    tokenizer = reference.get_tokenizer()
    vocabulary = {**tokenizer.get_vocab(), "<new>": 999}
    other = SimpleNamespace(get_vocab=lambda: vocabulary, eos_token_id=256)
    stranger: Any = SimpleNamespace(get_tokenizer=lambda: other)
    policy: Any = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    with pytest.raises(ValueError, match="'<new>' is unknown in one and 999 in the other"):
        learned_reward(tokenizer, [reference, stranger])
    reward = each(lambda item, text: 0.0)
    with pytest.raises(ValueError, match="different tokenizers"):
        next(train(policy, [Ask("One?")], Config(), reward=reward, reference=stranger))
    with pytest.raises(ValueError, match="no reward model was given"):
        learned_reward(tokenizer, [])
    with pytest.raises(ValueError, match="cannot be negative"):
        kl_priced(reward, reference, -0.1)


def test_a_price_of_zero_leaves_the_reward_and_measures_the_distance(
    policy: tinker.TrainingClient, reference: tinker.SamplingClient
) -> None:
    cfg = Config(learning_rate=1e-2, prompts=1, group_size=4, max_tokens=2, steps=2, beta=0.0)
    reward = each(lambda item, text: float("a" in text))
    metrics = list(islice(train(policy, [Ask("One?")], cfg, reward=reward, reference=reference), 2))
    assert all(math.isfinite(m["kl"]) and 0 <= m["reward"] <= 1 for m in metrics)

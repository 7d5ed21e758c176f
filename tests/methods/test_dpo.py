"""DPO and its family: losses against plain arithmetic, and the loop against the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.methods.dpo import (
    METRICS,
    Config,
    Logps,
    Loss,
    Pair,
    batch_loss,
    cdpo_loss,
    dpo_loss,
    dpo_nll_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    pair_metrics,
    score_pairs,
    simpo_loss,
    token_averaged,
    train,
)
from posttrain.tasks.problem import Preference

SHOWN = [
    Preference("One?", "yes", "no no"),
    Preference("Two?", "it is", "is it not"),
    Preference("Three?", "a fine day", "never"),
]

Numbers = Sequence[float]
Formula = Callable[[Numbers, Numbers, Numbers, Numbers, Numbers, Numbers], float]


# The independent formulas: (policy, reference, length) of chosen, then of rejected, as numbers.


def softplus(x: float) -> float:
    """-log sigmoid(-x), by the definition."""
    return math.log(1 + math.exp(x))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def gaps(w: Numbers, rw: Numbers, v: Numbers, rv: Numbers) -> list[float]:
    return [(a - b) - (c - d) for a, b, c, d in zip(w, rw, v, rv, strict=True)]


def averages(w: Numbers, n: Numbers) -> list[float]:
    return [a / b for a, b in zip(w, n, strict=True)]


def plain_dpo(w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers) -> float:
    return mean([softplus(-0.3 * h) for h in gaps(w, rw, v, rv)])


def plain_cdpo(w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers) -> float:
    return mean([0.8 * softplus(-0.3 * h) + 0.2 * softplus(0.3 * h) for h in gaps(w, rw, v, rv)])


def plain_ipo(w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers) -> float:
    return mean([(h - 1 / 0.6) ** 2 for h in gaps(w, rw, v, rv)])


def plain_simpo(
    w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers
) -> float:
    pairs = zip(averages(w, nw), averages(v, nv), strict=True)
    return mean([softplus(-(2.5 * a - 2.5 * b - 0.7)) for a, b in pairs])


def plain_orpo(w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers) -> float:
    total = []
    for a, b in zip(averages(w, nw), averages(v, nv), strict=True):
        p, q = math.exp(a), math.exp(b)
        total.append(-a - 0.2 * math.log(1 / (1 + (q / (1 - q)) / (p / (1 - p)))))
    return mean(total)


def plain_kto(
    w: Numbers,
    rw: Numbers,
    nw: Numbers,
    v: Numbers,
    rv: Numbers,
    nv: Numbers,
    at: tuple[Numbers, Numbers] | None = None,
) -> float:
    """`at`: policy sums at which z is held fixed, for differences."""
    good = [a - b for a, b in zip(w, rw, strict=True)]
    bad = [a - b for a, b in zip(v, rv, strict=True)]
    fixed_w, fixed_v = at or (w, v)
    z = max(0.0, mean([a - b for a, b in zip([*fixed_w, *fixed_v], [*rw, *rv], strict=True)]))
    values = [1.5 * (1 - 1 / (1 + math.exp(-0.3 * (r - z)))) for r in good]
    values += [0.5 * (1 - 1 / (1 + math.exp(-0.3 * (z - r)))) for r in bad]
    return mean(values)


def plain_nll(w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers) -> float:
    return plain_dpo(w, rw, nw, v, rv, nv) - 0.4 * mean(averages(w, nw))


def plain_averaged(
    w: Numbers, rw: Numbers, nw: Numbers, v: Numbers, rv: Numbers, nv: Numbers
) -> float:
    per = [averages(x, n) for x, n in ((w, nw), (rw, nw), (v, nv), (rv, nv))]
    return mean([(h - 1 / 0.6) ** 2 for h in gaps(*per)])


FAMILY: dict[str, tuple[Loss, Formula]] = {
    "dpo": (partial(dpo_loss, beta=0.3), plain_dpo),
    "cdpo": (partial(cdpo_loss, beta=0.3, flipped=0.2), plain_cdpo),
    "ipo": (partial(ipo_loss, beta=0.3), plain_ipo),
    "simpo": (partial(simpo_loss, beta=2.5, gap=0.7), plain_simpo),
    "orpo": (partial(orpo_loss, weight=0.2), plain_orpo),
    "kto": (partial(kto_loss, beta=0.3, desirable=1.5, undesirable=0.5), plain_kto),
    "dpo_nll": (partial(dpo_nll_loss, beta=0.3, weight=0.4), plain_nll),
    "averaged": (token_averaged(partial(ipo_loss, beta=0.3)), plain_averaged),
}


def six(seed: int, shift: float = 0.0) -> list[list[float]]:
    """Five pairs; `shift` nats above the reference on average."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[float]] = []
    for _ in range(2):
        length = torch.randint(3, 12, (5,), generator=generator).double()
        reference = -length * (0.3 + torch.rand(5, generator=generator).double())
        policy = reference + shift + 2 * torch.randn(5, generator=generator).double()
        found += [torch.clamp(policy, max=-0.5).tolist(), reference.tolist(), length.tolist()]
    return found


def both(numbers: Sequence[Numbers]) -> tuple[Logps, Logps]:
    tensors = [torch.tensor(list(x), dtype=torch.float64) for x in numbers]
    return Logps(*tensors[:3]), Logps(*tensors[3:])


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("seed", "shift"), [(0, -1.0), (1, 0.0), (2, 1.5)])
def test_every_loss_is_its_formula(name: str, seed: int, shift: float) -> None:
    loss, formula = FAMILY[name]
    numbers = six(seed, shift)
    assert loss(*both(numbers)).item() == pytest.approx(formula(*numbers), rel=1e-12)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("seed", "shift"), [(0, -1.0), (2, 1.5)])
def test_every_gradient_is_the_slope_of_its_formula(name: str, seed: int, shift: float) -> None:
    """Central differences of the independent formula, in each of the ten log-probabilities."""
    loss, formula = FAMILY[name]
    numbers = six(seed, shift)
    chosen, rejected = both(numbers)
    chosen.policy.requires_grad_()
    rejected.policy.requires_grad_()
    loss(chosen, rejected).backward()
    if name == "kto":  # z carries no gradient, so it must not move with the differences
        formula = partial(plain_kto, at=(numbers[0], numbers[3]))
    for place, answers in ((0, chosen), (3, rejected)):
        assert answers.policy.grad is not None
        for i in range(5):
            moved = [[list(x) for x in numbers] for _ in range(2)]
            moved[0][place][i] += 1e-5
            moved[1][place][i] -= 1e-5
            slope = (formula(*moved[0]) - formula(*moved[1])) / 2e-5
            assert answers.policy.grad[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_kto_is_tested_with_and_without_a_baseline() -> None:
    for shift, above in ((-1.0, False), (1.5, True)):
        chosen, rejected = both(six(0 if not above else 2, shift))
        assert (torch.cat([chosen.change, rejected.change]).mean().item() > 0) is above


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dpo", math.log(2)),
        ("cdpo", math.log(2)),
        ("ipo", 1 / 0.36),
        ("kto", (1.5 + 0.5) / 4),
        ("averaged", 1 / 0.36),
    ],
)
def test_at_the_reference_a_loss_has_its_known_value(name: str, value: float) -> None:
    numbers = six(3)
    numbers[0], numbers[3] = numbers[1], numbers[4]
    assert FAMILY[name][0](*both(numbers)).item() == pytest.approx(value, rel=1e-12)


def test_a_certain_answer_has_finite_odds_and_gradients() -> None:
    chosen, rejected = both([[0.0], [-1.0], [3.0], [-2.0], [-1.0], [4.0]])
    chosen.policy.requires_grad_()
    loss = orpo_loss(chosen, rejected)
    loss.backward()
    assert math.isfinite(loss.item())
    assert chosen.policy.grad is not None
    assert chosen.policy.grad.isfinite().all()


@given(st.permutations(range(5)), st.integers(0, 20), st.sampled_from(sorted(FAMILY)))
def test_the_order_of_pairs_does_not_matter(order: list[int], seed: int, name: str) -> None:
    numbers = six(seed)
    shuffled = [[x[i] for i in order] for x in numbers]
    loss = FAMILY[name][0]
    assert loss(*both(shuffled)).item() == pytest.approx(loss(*both(numbers)).item(), rel=1e-12)


def test_metrics_by_hand() -> None:
    chosen, rejected = both([[-3, -5], [-4, -4], [2, 2], [-6, -7], [-6, -6], [2, 2]])
    assert pair_metrics(chosen, rejected) == {
        "margin": pytest.approx(((1 - 0) + (-1 + 1)) / 2),
        "accuracy": 0.75,  # one pair is won, the other is a tie
        "chosen_logps": -4.0,
        "rejected_logps": -6.5,
        "chosen_change": 0.0,
        "rejected_change": -0.5,
    }


# The loop, on a tiny random model behind a real engine.


@pytest.fixture
def tiny(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()


@pytest.fixture(scope="module")
def reference(service: tinker.ServiceClient, tiny_model_dir: Path) -> tinker.SamplingClient:
    """By its directory, under which the tokenizer is found without network."""
    return service.create_sampling_client(base_model=str(tiny_model_dir)).result()


@pytest.fixture(scope="module")
def pairs(reference: tinker.SamplingClient) -> list[Pair]:
    return score_pairs(reference, SHOWN, max_tokens=64)


def test_the_reference_scores_the_answer_and_its_end_alone(
    pairs: list[Pair], tiny_model_dir: Path
) -> None:
    """Against `transformers` on the same weights; text and end token are spelled out here."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64)
    end = 256
    for pair, shown in zip(pairs, SHOWN, strict=True):
        for answer, found, datum in (
            (shown.chosen, pair.reference_chosen, pair.chosen),
            (shown.rejected, pair.reference_rejected, pair.rejected),
        ):
            tokens = datum.model_input.to_ints()
            targets = datum.loss_fn_inputs["target_tokens"].to_torch().long()
            completion = len(f"assistant: {answer}") + 1
            assert targets[-1] == end
            with torch.no_grad():
                logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            own = logprobs[torch.arange(len(targets)), targets][-completion:]
            assert found == pytest.approx(own.sum().item(), abs=1e-3)


def test_the_first_loss_is_log_2(tiny: tinker.TrainingClient, pairs: list[Pair]) -> None:
    (first,) = islice(train(tiny, pairs, Config(batch_size=3, steps=4)), 1)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert first["accuracy"] == 0.5
    assert first["chosen_logps"] == pytest.approx(
        mean([p.reference_chosen for p in pairs]), abs=1e-3
    )
    assert first["rejected_logps"] == pytest.approx(
        mean([p.reference_rejected for p in pairs]), abs=1e-3
    )
    assert first["tokens"] == sum(p.tokens for p in pairs)
    assert set(METRICS) <= set(first)


def test_the_margin_rises_and_falls_when_the_labels_are_swapped(
    service: tinker.ServiceClient, reference: tinker.SamplingClient, pairs: list[Pair]
) -> None:
    """The same pairs in the other order: the first step goes exactly the other way."""
    turned = [Preference(p.question, p.rejected, p.chosen) for p in SHOWN]
    swapped = score_pairs(reference, turned, max_tokens=64)
    margins = []
    for trained in (pairs, swapped):
        policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()
        cfg = Config(batch_size=3, steps=30, learning_rate=3e-3)
        metrics = list(islice(train(policy, trained, cfg), 6))
        steps = [m["margin"] for m in metrics]
        assert all(b > a for a, b in pairwise(steps))
        probe = islice(train(policy, pairs, Config(batch_size=3, steps=1, learning_rate=0)), 1)
        margins.append(next(probe)["margin"])
    assert margins[0] > 0.1
    assert margins[1] < -0.1


def test_only_completions_get_gradient(pairs: list[Pair]) -> None:
    data_D = [d for p in pairs for d in (p.chosen, p.rejected)]
    logprobs_D = [torch.full((d.model_input.length,), -1.0, requires_grad=True) for d in data_D]
    loss, _ = batch_loss(dpo_loss, pairs, data_D, logprobs_D)
    loss.backward()
    for i, (datum, logprobs) in enumerate(zip(data_D, logprobs_D, strict=True)):
        weights = datum.loss_fn_inputs["weights"].to_torch()
        gradient: Tensor | None = logprobs.grad
        assert gradient is not None
        assert (gradient[weights == 0] == 0).all()
        sign = -1 if i % 2 == 0 else 1  # minimising raises the chosen, lowers the rejected
        assert (sign * gradient[weights > 0] > 0).all()
        assert weights[-1] == 1  # the end token


def test_each_answer_is_counted_in_its_own_tokens(pairs: list[Pair]) -> None:
    """With log p = -1 everywhere, a sum is minus the length: text of bytes, and the end token."""
    data_D = [d for p in pairs for d in (p.chosen, p.rejected)]
    logprobs_D = [torch.full((d.model_input.length,), -1.0) for d in data_D]

    def look(chosen: Logps, rejected: Logps) -> Tensor:
        for side, texts in (
            (chosen, [p.chosen for p in SHOWN]),
            (rejected, [p.rejected for p in SHOWN]),
        ):
            expected = [float(len(f"assistant: {text}") + 1) for text in texts]
            assert side.length.tolist() == expected
            assert (-side.policy).tolist() == expected
        return dpo_loss(chosen, rejected)

    batch_loss(look, pairs, data_D, logprobs_D)


def test_it_learns_the_preferences(tiny: tinker.TrainingClient, pairs: list[Pair]) -> None:
    cfg = Config(batch_size=3, steps=40, learning_rate=1e-2)
    metrics = list(train(tiny, pairs, cfg))
    assert metrics[-1]["accuracy"] == 1.0
    assert metrics[-1]["loss"] < 0.2
    for m in metrics:  # the changes are measured apart, and their difference is the margin
        assert m["chosen_change"] - m["rejected_change"] == pytest.approx(m["margin"], abs=1e-9)


@pytest.mark.parametrize(
    ("loss", "optimum"),
    [
        (partial(ipo_loss, beta=0.2), 1 / 0.4),
        (partial(cdpo_loss, beta=1.0, flipped=0.1), math.log(9)),
    ],
)
def test_training_ends_at_the_known_optimum(
    tiny: tinker.TrainingClient, pairs: list[Pair], loss: Loss, optimum: float
) -> None:
    """h = 1/(2 beta) for IPO; sigmoid(beta h) = 1 - flipped for cDPO."""
    cfg = Config(batch_size=1, steps=80, learning_rate=1e-3)
    last = list(train(tiny, pairs[:1], cfg, loss=loss))[-1]
    assert last["margin"] == pytest.approx(optimum, abs=0.1)


@pytest.mark.parametrize("name", FAMILY)
def test_every_loss_goes_down_in_the_loop(
    service: tinker.ServiceClient, pairs: list[Pair], name: str
) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=0).result()
    cfg = Config(batch_size=3, steps=20, learning_rate=2e-4)
    losses = [m["loss"] for m in islice(train(policy, pairs, cfg, loss=FAMILY[name][0]), 5)]
    assert losses[-1] < losses[0]


def test_an_interrupted_run_resumes_to_the_same_metrics(
    service: tinker.ServiceClient, pairs: list[Pair]
) -> None:
    cfg = Config(batch_size=2, steps=5, learning_rate=5e-3, seed=3)
    whole = service.create_lora_training_client("posttrain/tiny", rank=4, seed=1).result()
    expected = list(train(whole, pairs, cfg))
    before = service.create_lora_training_client("posttrain/tiny", rank=4, seed=1).result()
    got = list(islice(train(before, pairs, cfg), 2))
    path = before.save_state("dpo-interrupted", overwrite=True).result().path
    after = service.create_training_client_from_state_with_optimizer(path).result()
    got += list(train(after, pairs, cfg, start=2))
    assert got == expected


def test_pairs_that_teach_nothing_or_too_long_are_refused(
    reference: tinker.SamplingClient,
) -> None:
    same = [*SHOWN, Preference("Four?", "same", "same")]
    with pytest.raises(ValueError, match=r"preference 3 \('Four\?'\): chosen and rejected are the"):
        score_pairs(reference, same, max_tokens=64)
    long = [Preference("Five?", "short", "long " * 20)]
    tokens = len("user: Five?") + 1 + len("assistant: " + "long " * 20) + 1
    with pytest.raises(ValueError, match=f"has {tokens} tokens, more than max_tokens={tokens - 1}"):
        score_pairs(reference, long, max_tokens=tokens - 1)
    assert len(score_pairs(reference, long, max_tokens=tokens)) == 1
    with pytest.raises(ValueError, match="no preferences were given"):
        score_pairs(reference, [], max_tokens=64)


def test_without_pairs_there_is_nothing_to_train_on(tiny: tinker.TrainingClient) -> None:
    with pytest.raises(ValueError, match="the dataset is empty"):
        next(train(tiny, [], Config()))


def test_pairs_of_another_tokenizer_are_refused_before_the_first_step(pairs: list[Pair]) -> None:
    """The stand-in can do nothing but show a tokenizer, so any other call would fail."""
    vocabulary = {**pairs[0].tokenizer.get_vocab(), "<new>": 999}
    other = SimpleNamespace(get_vocab=lambda: vocabulary, eos_token_id=256)
    policy: Any = SimpleNamespace(get_tokenizer=lambda: other)
    with pytest.raises(ValueError, match="'<new>' is 999 in one and unknown in the other"):
        next(train(policy, pairs, Config()))

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.ledger import Ledger

counts = st.integers(0, 10**9)
ledgers = st.builds(Ledger, counts, counts, counts, counts, st.just(0.5), counts.map(float))


def test_flops_are_six_n_to_train_and_two_n_to_sample_or_score() -> None:
    ledger = Ledger()
    ledger.train(tokens=1000, parameters=3_000_000)
    ledger.sample(tokens=50, parameters=3_000_000)
    ledger.score(tokens=7, parameters=5_000_000)
    assert ledger.flops == 6 * 3e6 * 1000 + 2 * 3e6 * 50 + 2 * 5e6 * 7
    assert (ledger.optimizer_steps, ledger.trained_tokens) == (1, 1000)
    assert (ledger.sampled_tokens, ledger.scored_tokens) == (50, 7)


@given(ledgers, ledgers)
def test_adding_is_commutative_and_leaves_both_alone(a: Ledger, b: Ledger) -> None:
    before = a.to_json(), b.to_json()
    assert a + b == b + a
    assert a + Ledger() == a
    assert (a.to_json(), b.to_json()) == before


@given(ledgers)
def test_json_round_trip(ledger: Ledger) -> None:
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


def test_time_counts_even_when_the_block_fails() -> None:
    ledger = Ledger()

    def fail() -> None:
        with ledger.timed():
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert 0 < ledger.seconds < 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="only grows"):
        Ledger().train(-1, 10)
    with pytest.raises(ValueError, match="gpu_hours"):
        Ledger.from_json({**Ledger().to_json(), "gpu_hours": 1})

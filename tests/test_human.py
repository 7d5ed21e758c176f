"""The simulated human: draw frequencies against the Bradley-Terry formula, and the planted bias."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.tasks import human, stories
from posttrain.tasks.draws import seeded
from posttrain.tasks.gold import gold
from posttrain.tasks.human import FAIR, LONG_WINDED, Human
from posttrain.tasks.stories import Request

PINNED = "aababbbbaaababaaaaabaaba"  # which of the two stories was preferred
Pair = tuple[Request, str, str]


@functools.cache
def every_pair() -> list[Pair]:
    rng, found = seeded("pairs"), []
    for i in range(4000):
        r = stories.story("train", i)
        a, b = (stories.write(r, rng, stories.author(rng)) for _ in range(2))
        found.append((r, a, b))
    return found


def pairs(n: int) -> list[Pair]:
    """Two stories by random authors for each of n requests."""
    return every_pair()[:n]


def bradley_terry(pair: Pair, temperature: float) -> float:
    r, a, b = pair
    return 1 / (1 + math.exp((gold(r, b) - gold(r, a)) / temperature))


def test_labels_agree_with_gold_on_three_quarters_to_nine_tenths_of_the_corpus_pairs() -> None:
    unequal = [p for p in pairs(4000) if gold(p[0], p[1]) != gold(p[0], p[2])]
    agree = [human.prefers(r, a, b, seed=0) == (gold(r, a) > gold(r, b)) for r, a, b in unequal]
    expected = np.mean([max(p, 1 - p) for p in (bradley_terry(pair, 1.0) for pair in unequal)])
    assert 0.75 < np.mean(agree) < 0.90
    assert expected == pytest.approx(0.86, abs=0.01)  # the number in the module's text
    assert np.mean(agree) == pytest.approx(expected, abs=3 * 0.5 / math.sqrt(len(agree)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_follow_bradley_terry(temperature: float) -> None:
    """Chi-squared over twenty groups of pairs, ordered by their probability."""
    someone = Human(temperature)
    drawn = sorted(
        (bradley_terry(p, temperature), human.prefers(*p, seed=1, human=someone))
        for p in pairs(4000)
    )
    statistic = 0.0
    for group in np.array_split(np.array(drawn), 20):
        p, won = group.T
        statistic += (won.sum() - p.sum()) ** 2 / max((p * (1 - p)).sum(), 1e-9)
    assert stats.chi2(20).sf(statistic) > 0.001


def test_seeds_are_independent_draws_of_one_pair() -> None:
    pair = next(p for p in pairs(50) if 0.6 < bradley_terry(p, 1.0) < 0.8)
    drawn = np.array([human.prefers(*pair, seed=s) for s in range(2000)])
    p = bradley_terry(pair, 1.0)
    assert stats.binomtest(int(drawn.sum()), 2000, p).pvalue > 0.001
    both = int((drawn[1:] & drawn[:-1]).sum())
    assert both / 1999 == pytest.approx(p * p, abs=0.05)


@given(st.text(), st.text(), st.integers(0, 2**63))
def test_the_order_of_a_pair_does_not_matter(a: str, b: str, seed: int) -> None:
    request = stories.story("train", 0)
    first = human.prefers(request, a, b, seed)
    assert first == human.prefers(request, a, b, seed)
    assert a == b or first != human.prefers(request, b, a, seed)
    assert human.probability(request, a, b) + human.probability(request, b, a) == pytest.approx(1)


def test_labels_are_the_same_on_every_machine() -> None:
    answers = [human.prefers(*p, seed=7) for p in pairs(24)]
    assert "".join("ab"[not a] for a in answers) == PINNED


def test_the_planted_bias() -> None:
    """The longer of two equally good texts wins in 60 %; a text's quality counts in the rest."""
    longer = [p for p in pairs(3000) if len(p[1].split()) > len(p[2].split())]
    indifferent = Human(temperature=1e9, longer_wins=0.6)
    won = sum(human.prefers(*p, seed=0, human=indifferent) for p in longer)
    assert stats.binomtest(won, len(longer), 0.6).pvalue > 0.001
    for p in longer[:200]:
        expected = 0.2 + 0.8 * bradley_terry(p, 1.0)
        assert human.probability(*p, human=LONG_WINDED) == pytest.approx(expected)
        r, a, b = p
        assert human.probability(r, b, a, human=LONG_WINDED) == pytest.approx(1 - expected)
    blind = Human(longer_wins=1.0)
    assert all(human.prefers(*p, seed=0, human=blind) for p in longer)


def test_without_noise_the_better_text_wins() -> None:
    sure = Human(temperature=0)
    for r, a, b in pairs(300):
        if gold(r, a) != gold(r, b):
            assert human.prefers(r, a, b, seed=0, human=sure) == (gold(r, a) > gold(r, b))


def test_preferences_are_labelled_pairs_of_different_texts() -> None:
    request, rng = stories.story("train", 3), seeded(3)
    texts = [stories.write(request, rng, stories.author(rng)) for _ in range(8)]
    every = human.preferences(request, [*texts, texts[0]], seed=5)
    assert len(set(texts)) == 8
    assert len(every) == 28
    assert {frozenset((p.chosen, p.rejected)) for p in every} == {
        frozenset(pair) for pair in itertools.combinations(texts, 2)
    }
    for p in every:
        assert p.question == request.question
        assert human.prefers(request, p.chosen, p.rejected, seed=5)
    some = human.preferences(request, texts, seed=5, pairs=10)
    assert len(set(some)) == 10
    assert set(some) < set(every)
    assert some == human.preferences(request, texts[::-1], seed=5, pairs=10)
    assert human.preferences(request, texts[:1] * 3, seed=5) == []
    biased = human.preferences(request, texts, seed=5, human=Human(longer_wins=1.0))
    assert all(len(p.chosen.split()) >= len(p.rejected.split()) for p in biased)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be finite and at least 0, not -1.0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"longer_wins": 0.4}, "longer_wins must be within 0.5 and 1, not 0.4"),
    ],
)
def test_impossible_humans_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Human(**settings)


def test_the_default_is_fair() -> None:
    assert Human(temperature=1.0, longer_wins=0.5) == FAIR

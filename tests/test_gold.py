"""The hidden quality: against a second implementation, its shape, and what each flaw costs."""

import math
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import gold, prose, stories
from posttrain.tasks.draws import seeded
from posttrain.tasks.gold import Quality
from posttrain.tasks.stories import Flaw, Request


def slow_gold(r: Request, text: str) -> float:
    """The documented formula, computed from the text with regular expressions and nothing else."""
    pieces = [p.strip() for p in re.findall(r"[^.!?]+[.!?]*|[.!?]+", text) if p.strip()]
    words = re.findall(r"[a-z]+", text.lower())
    relative = (len(words) + 5) / 45
    length = math.log(relative) - relative + 2
    if not words:
        return 2 * length

    def tone(part: str, mood: str) -> int:
        return sum(w in prose.PALETTES[mood].words for w in re.findall(r"[a-z]+", part.lower()))

    body, last = " ".join(pieces[:-1]), pieces[-1]
    own, every = tone(text, r.mood), sum(tone(text, m) for m in prose.MOODS)
    animals = [w for w in words if w in prose.ANIMALS]
    met = [
        r.hero in animals and animals.count(r.hero) == max(map(animals.count, animals)),
        own >= 2 and own > every - own,
    ]
    if r.place:
        met.append({w for w in words if w in prose.PLACES} == {r.place})
    if r.friend:
        met.append(r.friend in words)
    if r.thing:
        met.append(r.thing in words)
    if r.ending:
        met.append(r.ending in re.findall(r"[a-z]+", last.lower()))
    news = [len(re.findall(rf"\ba\W+{r.hero}\b", p.lower())) > 0 for p in pieces]
    ends = [bool(re.match(r"\W*(in\W+the\W+end|at\W+last)\b", p.lower())) for p in pieces]
    strangers = len(set(animals) - {r.hero, r.friend})
    good = [prose.well_formed(f"{p} {p}") for p in pieces]
    coherence = (
        (sum(good) / len(good))
        * ((news[0] and sum(news) == 1) + (ends[-1] and sum(ends) == 1) + 1 / (1 + strangers))
        / 3
    )
    mooded = sum(tone(body, m) for m in prose.MOODS)
    closing = sum(tone(last, m) for m in prose.MOODS)
    m = tone(body, r.mood) / mooded if mooded else 0.0
    e = (2 * tone(last, r.mood) - closing) / closing if closing else 0.0
    trigrams = []
    for p in pieces:
        w = re.findall(r"[a-z]+", p.lower())
        trigrams += list(zip(w, w[1:], w[2:], strict=False))
    repeated = 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
    return 4 * (sum(met) / len(met)) ** 2 + 2 * coherence + 2 * length + 2 * m * e - 5 * repeated


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_gold_agrees_with_a_second_implementation(i: int, other: int) -> None:
    request, rng = stories.story("train", i), seeded(i)
    text = stories.write(request, rng, stories.author(rng))
    foreign = stories.story("train", other)
    garbled = text.split(" ")
    random.Random(i).shuffle(garbled)
    cut = text[: 1 + i % len(text)]
    for written in (
        text,
        request.solution,
        " ".join(garbled),
        cut,
        "",
        ".",
        "fox",
        foreign.question,
    ):
        assert gold.gold(request, written) == pytest.approx(slow_gold(request, written), abs=1e-12)
        assert gold.gold(foreign, written) == pytest.approx(slow_gold(foreign, written), abs=1e-12)


@given(st.text() | st.text("aA fox. !?\n\0é", max_size=300) | st.binary().map(str))
def test_any_text_has_a_quality(text: str) -> None:
    request = stories.story("train", len(text))
    q = gold.quality(request, text)
    assert 0 <= q.coverage <= 1
    assert 0 <= q.coherence <= 1
    assert q.length <= 1
    assert 0 <= q.mood <= 1
    assert -1 <= q.ending <= 1
    assert 0 <= q.repetition < 1
    assert q.gold <= 10
    assert math.isfinite(q.gold)


def test_an_empty_and_a_perfect_text() -> None:
    request = Request("fox", "sad", "cave", "bear", "lamp", "feast")
    assert gold.gold(request, "") == pytest.approx(2 * (math.log(5 / 45) - 5 / 45 + 2))
    assert Quality(1, 1, 1, 1, 1, 0).gold == 10
    assert min(gold.gold(r, r.solution) for r in stories.stories("test", 500)) > 9.4


def test_the_length_term_is_concave_with_its_maximum_at_the_best_length() -> None:
    terms = np.array([gold.length_term(n) for n in range(1000)])
    assert (np.diff(terms, 2) < 0).all()
    assert terms.argmax() == gold.WORDS == 40
    assert terms.max() == 1


def test_an_ending_is_worth_what_the_story_has_built_up() -> None:
    """The mixed second difference of m and e is that of a product: 2 * 1 * 2."""
    g = {(m, e): Quality(1, 1, 1, m, e, 0).gold for m in (0.0, 1.0) for e in (-1.0, 1.0)}
    assert g[1, 1] - g[1, -1] - g[0, 1] + g[0, -1] == pytest.approx(4)
    assert g[0, 1] == g[0, -1]


@pytest.mark.parametrize(
    ("flaw", "least", "share"),
    [
        (Flaw.FORGETS, 1.5, 1.0),
        (Flaw.CONFUSES, 1.7, 1.0),
        (Flaw.MIXES_MOODS, 3.0, 0.99),
        (Flaw.HAPPY_ENDING, 3.5, 1.0),
        (Flaw.STRANGER, 0.3, 0.97),
        (Flaw.REPEATS, 0.8, 0.99),
        (Flaw.RAMBLES, 1.5, 1.0),
        (Flaw.HURRIES, 1.5, 0.95),
        (Flaw.ENDS_EARLY, 1.5, 1.0),
    ],
)
def test_every_flaw_lowers_gold(flaw: Flaw, least: float, share: float) -> None:
    """By `least` points in the mean, and in at least this share of stories.

    Of requests that the flaw can touch: the forgetful need something to forget, and a happy
    ending is none in a happy story.
    """
    requests = [
        r for r in stories.stories("validation", 700) if r.mood != "happy" and r.demands > 2
    ]
    lost = [
        gold.gold(r, r.solution) - gold.gold(r, stories.write(r, seeded(i), {flaw}))
        for i, r in enumerate(requests)
    ]
    assert np.mean(lost) > least
    assert np.mean(np.array(lost) > 0) >= share


def test_keywords_without_a_story_are_worth_little() -> None:
    """All that was asked for in a heap has full coverage, and still is worse than most stories."""
    request = Request("fox", "sad", "cave", "bear", "lamp", "feast")
    heap = "fox sad cave bear lamp feast sorrow tears fox"
    assert gold.quality(request, heap).coverage == 1
    rng = seeded("heap")
    written = [stories.write(request, rng, stories.author(rng)) for _ in range(300)]
    assert gold.gold(request, heap) < np.median([gold.gold(request, text) for text in written])


def test_authors_write_stories_of_varied_quality() -> None:
    rng = seeded("authors")
    values = [
        gold.gold(r, stories.write(r, rng, stories.author(rng)))
        for r in stories.stories("train", 2000)
    ]
    assert np.std(values) > 2
    low, middle, high = np.percentile(values, [10, 50, 90])
    assert low < 3.5 < 5 < middle < 7 < 9 < high

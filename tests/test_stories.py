"""Requests and their authors: splits, difficulty, and every flaw seen from outside."""

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.tasks import prose, stories
from posttrain.tasks.draws import Split, seeded
from posttrain.tasks.stories import Flaw, Request

PINNED = [
    "story:frog:scary::cat::gift",
    "story:dog:happy:forest:mouse:ring:gift",
    "story:cat:scary:castle:::storm",
]
PINNED_STORY = (
    "There was a dog in the forest. The dog was glad. The dog found a ring. One day a mouse came "
    "by. The day was sunny and the dog jumped. At last came a gift and the dog laughed with joy."
)
VOCABULARY = 117  # words of requests and stories; "The" and "the" are two

indices = st.integers(0, 10**9)
splits = st.sampled_from(list(Split))
CLASSES = {
    "animals": prose.ANIMALS,
    "moods": prose.MOODS,
    "places": prose.PLACES,
    "things": prose.THINGS,
    "endings": prose.ENDINGS,
}


def words_of(kind: str, text: str) -> list[str]:
    return re.findall(rf"\b(?:{'|'.join(CLASSES[kind])})\b", text)


@given(splits, indices, st.integers(0, 100))
def test_a_question_asks_for_the_demands_and_nothing_else(split: Split, i: int, seed: int) -> None:
    r = stories.story(split, i, seed=seed)
    assert r == stories.story(split, i, seed=seed)
    for phrasing in range(len(stories.PHRASINGS)):
        q = Request(r.hero, r.mood, r.place, r.friend, r.thing, r.ending, phrasing).question
        assert words_of("animals", q) == [a for a in (r.hero, r.friend) if a]
        assert words_of("moods", q) == [r.mood]
        assert words_of("places", q) == [p for p in (r.place,) if p]
        assert words_of("things", q) == [t for t in (r.thing,) if t]
        assert words_of("endings", q) == [e for e in (r.ending,) if e]
    assert r.friend != r.hero
    assert r.demands == sum(len(words_of(kind, r.question)) for kind in CLASSES)


def test_the_ways_to_ask() -> None:
    asked = [Request("fox", "sad", "cave", "bear", "lamp", "feast", i).question for i in range(3)]
    assert asked == [
        "Write a sad story about a fox in the cave with a bear and a lamp. End with a feast.",
        "Tell me of a fox in the cave. Put in a bear and a lamp. Make it sad and end with a feast.",
        "Story wanted: hero fox, mood sad, place cave, friend bear, thing lamp, ending feast.",
    ]
    assert [Request("fox", "sad", phrasing=i).question for i in range(3)] == [
        "Write a sad story about a fox.",
        "Tell me of a fox. Make it sad.",
        "Story wanted: hero fox, mood sad.",
    ]


def test_items_are_the_same_on_every_machine() -> None:
    assert [stories.story("train", i).key for i in (0, 1, 12345)] == PINNED
    assert stories.story("train", 1).solution == PINNED_STORY


def test_splits_are_disjoint_and_sized_as_documented() -> None:
    pools = {s: stories.stories(s, 800) for s in Split}
    for a, b in itertools.combinations(Split, 2):
        assert not {r.key for r in pools[a]} & {r.key for r in pools[b]}
    every = {(hero, mood) for hero in prose.ANIMALS for mood in prose.MOODS}
    held_out = {(r.hero, r.mood) for r in pools[Split.OOD]}
    shown = [(r.hero, r.mood) for s in Split if s is not Split.OOD for r in pools[s]]
    assert held_out == stories.HELD_OUT
    assert set(shown) == every - held_out
    assert Counter(hero for hero, _ in held_out) == dict.fromkeys(prose.ANIMALS, 1)
    assert set(Counter(mood for _, mood in held_out).values()) == {3}
    shares = Counter(
        stories.split_of(Request("fox", "sad", place, friend, thing))
        for place in prose.PLACES
        for friend in prose.ANIMALS
        for thing in prose.THINGS
    )
    total = sum(shares.values())
    for split, share in ((Split.TRAIN, 205 / 256), (Split.VALIDATION, 26 / 256)):
        assert stats.binomtest(shares[split], total, share).pvalue > 0.001


def test_difficulty_is_the_number_of_demands() -> None:
    for k in range(2, 7):
        assert {stories.story("train", i, demands=(k, k)).demands for i in range(50)} == {k}
    counts = Counter(stories.story("train", i).demands for i in range(5000))
    assert stats.chisquare([counts[k] for k in range(2, 7)]).pvalue > 0.001
    with pytest.raises(ValueError, match="stories have 2 to 6 demands, not 1 to 3"):
        stories.story("train", 0, demands=(1, 3))
    with pytest.raises(
        ValueError, match="unknown split 'exam'; known: train, validation, test, ood"
    ):
        stories.story("exam", 0)


def test_the_smallest_pool_is_found_whole_and_not_beyond() -> None:
    pairs = [Request(hero, mood) for hero in prose.ANIMALS for mood in prose.MOODS]
    train = {r.key for r in pairs if stories.split_of(r) is Split.TRAIN}
    assert {r.key for r in stories.stories("train", len(train), demands=(2, 2))} == train
    with pytest.raises(ValueError, match=f"only {len(train)} different"):
        stories.stories("train", len(train) + 1, demands=(2, 2))


@given(splits, indices)
def test_a_good_story_has_all_that_was_asked_and_nothing_else(split: Split, i: int) -> None:
    r = stories.story(split, i)
    sentences = r.solution.split(". ")
    assert r.solution == stories.story(split, i).solution
    assert prose.well_formed(r.solution)
    assert len(sentences) == 6 == len(set(sentences))
    assert 30 <= len(r.solution.split()) <= 60
    assert set(words_of("animals", r.solution)) == {a for a in (r.hero, r.friend) if a}
    assert set(words_of("places", r.solution)) == {p for p in (r.place,) if p}
    assert set(words_of("things", r.solution)) == {t for t in (r.thing,) if t}
    assert words_of("endings", sentences[-1]) == [e for e in (r.ending,) if e]
    assert moods(r.solution) == {r.mood}
    assert moods(sentences[-1]) == {r.mood}


def moods(text: str) -> set[str]:
    return {m for m, palette in prose.PALETTES.items() if palette.words & set(words(text))}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def full() -> Request:
    return Request("fox", "sad", "cave", "bear", "lamp", "feast")


def told(flaw: Flaw, seed: int) -> tuple[str, list[str]]:
    """A story with one flaw, and its sentences."""
    text = stories.write(full(), seeded(seed), {flaw})
    return text, text.removesuffix(".").split(". ")


@pytest.mark.parametrize("seed", range(60))
def test_each_flaw_is_what_it_says(seed: int) -> None:
    demands = {"fox", "cave", "bear", "lamp", "feast"}
    text, _ = told(Flaw.FORGETS, seed)
    assert {"fox"} <= demands & set(words(text)) < demands
    text, _ = told(Flaw.CONFUSES, seed)
    assert len(demands & set(words(text))) == 4
    assert sum(len(set(words_of(k, text))) for k in CLASSES if k != "moods") == 5
    _, sentences = told(Flaw.HAPPY_ENDING, seed)
    assert moods(sentences[-1]) == {"happy"}
    assert moods(" ".join(sentences[:-1])) == {"sad"}
    text, _ = told(Flaw.STRANGER, seed)
    assert len(set(words_of("animals", text))) == 3
    _, sentences = told(Flaw.REPEATS, seed)
    assert 1 <= len(sentences) - len(set(sentences)) <= 3
    assert len(set(sentences)) == 6
    _, sentences = told(Flaw.RAMBLES, seed)
    assert 12 <= len(sentences) <= 15
    _, sentences = told(Flaw.HURRIES, seed)
    assert len(sentences) == 3
    assert "feast" in sentences[-1]
    _, sentences = told(Flaw.ENDS_EARLY, seed)
    assert "feast" in sentences[1]
    assert len(sentences) == 6


def test_mixed_moods_are_all_moods() -> None:
    counts = [len(moods(told(Flaw.MIXES_MOODS, seed)[0])) for seed in range(300)]
    assert sum(counts) / 300 == pytest.approx(4 * (1 - 0.75**3), abs=0.35)  # 3 to 4 draws a story


def test_authors_have_flaws_as_often_as_documented() -> None:
    n, rng = 8000, seeded("authors")
    people = [stories.author(rng) for _ in range(n)]
    assert not any({Flaw.RAMBLES, Flaw.HURRIES} <= flaws for flaws in people)
    for flaw, share in stories.SHARES.items():
        expected = (1 - stories.CAREFUL) * share
        if flaw is Flaw.RAMBLES:
            expected *= 1 - stories.SHARES[Flaw.HURRIES]
        count = sum(flaw in flaws for flaws in people)
        assert stats.binomtest(count, n, expected).pvalue > 0.001


def test_the_vocabulary_is_closed_and_small() -> None:
    found = Counter[str]()
    for i in range(3000):
        request, rng = stories.story("train", i), seeded(i)
        text = stories.write(request, rng, stories.author(rng))
        found.update(re.findall(r"[A-Za-z]+", f"{request.question} {text}"))
    assert len(found) == VOCABULARY
    assert min(found.values()) > 50

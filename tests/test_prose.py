"""The language of the stories: its grammar against all its sentences, reading against counting."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import prose
from posttrain.tasks.draws import seeded
from posttrain.tasks.stories import author, story, write


def every_sentence(template: str) -> list[str]:
    """The template with everything that fits into its slots."""
    names = re.findall(r"\{\w+\}", template)
    sentences = []
    for values in itertools.product(*[prose.SLOTS[name] for name in names]):
        sentence = template
        for name, value in zip(names, values, strict=True):
            sentence = sentence.replace(name, value, 1)
        sentences.append(sentence)
    return sentences


def test_neighbours_are_those_of_all_sentences_of_the_grammar() -> None:
    pairs = set()
    for sentence in itertools.chain.from_iterable(map(every_sentence, prose.TEMPLATES)):
        words = [".", *sentence.rstrip(".").lower().split(), "."]
        pairs |= set(itertools.pairwise(words))
    assert pairs == prose.PAIRS


@pytest.mark.parametrize("template", prose.TEMPLATES)
def test_sentences_of_the_grammar_are_grammatical(template: str) -> None:
    for text in every_sentence(template)[::7]:
        (sentence,) = prose.read(text)
        assert sentence.grammatical
        assert sentence.closes == text.startswith(("In the end", "At last"))


@pytest.mark.parametrize(
    "text",
    [
        "Fox the in happy bear.",
        "the fox was happy.",  # no capital
        "The fox was happy",  # no full stop
        "The fox  was happy.",
        "The Fox was happy.",
        "The fox was clever.",  # not a word of this world
        "The fox was happy!",
        "The fox was.",
        "...",
    ],
)
def test_what_is_no_sentence_of_this_world_is_not_well_formed(text: str) -> None:
    good = "The fox was happy."
    assert prose.well_formed(f"{good} {good}")
    assert not prose.well_formed(f"{good} {text}")
    assert not prose.well_formed(f"{text} {good}")
    assert not prose.well_formed(good)  # one sentence is no story


def test_no_word_belongs_to_two_moods_or_two_classes() -> None:
    classes = [prose.ANIMALS, prose.PLACES, prose.THINGS, prose.ENDINGS]
    classes += [tuple(palette.words) for palette in prose.PALETTES.values()]
    words = list(itertools.chain.from_iterable(classes))
    assert len(words) == len(set(words))
    assert all(len(palette.words) == 8 for palette in prose.PALETTES.values())


@given(st.integers(0, 10**6))
def test_reading_agrees_with_counting(i: int) -> None:
    request, rng = story("train", i), seeded(i)
    text = write(request, rng, author(rng))
    sentences = prose.read(text)
    assert prose.well_formed(text)
    assert " ".join(" ".join(s.words) for s in sentences) == text.replace(".", "").lower()
    for number, mood in enumerate(prose.MOODS):
        count = sum(len(re.findall(rf"\b{w}\b", text)) for w in prose.PALETTES[mood].words)
        assert count == sum(s.moods[number] for s in sentences)
    for name in ("animals", "places", "things", "endings"):
        found = [word for s in sentences for word in getattr(s, name)]
        assert found == re.findall(rf"\b(?:{'|'.join(getattr(prose, name.upper()))})\b", text)
    introduced = [word for s in sentences for word in s.introduced]
    assert introduced == re.findall(rf"\b[Aa] ({'|'.join(prose.ANIMALS)})\b", text)
    for s in sentences:
        assert [t.split() for t in s.trigrams] == [
            list(s.words[k : k + 3]) for k in range(len(s.words) - 2)
        ]


@given(st.text() | st.text("The fox. !?\n", max_size=400))
def test_any_text_can_be_read(text: str) -> None:
    words = [word for sentence in prose.read(text) for word in sentence.words]
    assert words == re.findall(r"[a-z]+", text.lower())
    prose.well_formed(text)

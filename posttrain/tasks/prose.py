"""The language of the stories: its words, its sentences, and how a text is read.

The vocabulary is closed and small, so that a model of two million parameters can write it. A
text is read sentence by sentence; whatever stands in it, reading never fails.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

ANIMALS = (
    "bear", "cat", "dog", "duck", "fox", "frog", "goat", "hen", "lion", "mouse", "rabbit", "wolf",
)  # fmt: skip
PLACES = ("castle", "cave", "desert", "forest", "garden", "harbor", "valley", "village")
THINGS = ("bell", "boat", "drum", "hat", "key", "lamp", "map", "ring")
ENDINGS = ("dance", "feast", "gift", "race", "song", "storm")
NAMED = frozenset([*ANIMALS, *PLACES, *THINGS, *ENDINGS])


@dataclass(frozen=True)
class Palette:
    """The words that carry a mood; no word belongs to two."""

    feelings: tuple[str, ...]  # of a hero
    days: tuple[str, ...]  # of the day or the night
    deeds: tuple[str, ...]  # what a hero in this mood does
    closings: tuple[str, ...]  # how an ending in this mood ends; the last word carries the mood

    @property
    def words(self) -> frozenset[str]:
        closing = [phrase.split()[-1] for phrase in self.closings]
        return frozenset([*self.feelings, *self.days, *self.deeds, *closing])


PALETTES = {
    "happy": Palette(
        ("happy", "glad"), ("bright", "sunny"), ("laughed", "jumped"), ("with joy", "with a smile")
    ),
    "sad": Palette(
        ("sad", "lonely"), ("gray", "gloomy"), ("cried", "sighed"), ("in tears", "with sorrow")
    ),
    "scary": Palette(
        ("afraid", "scared"), ("dark", "grim"), ("shook", "hid"), ("in fear", "with a scream")
    ),
    "calm": Palette(
        ("calm", "quiet"), ("soft", "mild"), ("rested", "hummed"), ("in peace", "with a yawn")
    ),
}
MOODS = tuple(PALETTES)
MOOD_OF = {word: i for i, mood in enumerate(MOODS) for word in PALETTES[mood].words}

OPENINGS = ("Once there was a {hero}.", "There was once a {hero}.", "Once a {hero} went out.")
PLACED_OPENINGS = (
    "Once a {hero} lived in the {place}.",
    "In the {place} there was a {hero}.",
    "There was a {hero} in the {place}.",
)
COLOURS = (
    "The {hero} was {feeling}.",
    "The {hero} felt {feeling} and {deed}.",
    "The day was {day} and the {hero} {deed}.",
    "The night was {day}.",
)
MEETINGS = ("One day a {friend} came by.", "Then the {hero} met a {friend}.")
FINDS = ("The {hero} found a {thing}.", "A {thing} lay on the ground.")
CLOSINGS = (
    "In the end the {hero} {deed} {closing}.",
    "At last the {hero} went home {closing}.",
)
EVENTFUL_CLOSINGS = (
    "In the end there was a {ending} and the {hero} {deed} {closing}.",
    "At last came a {ending} and the {hero} {deed} {closing}.",
)
TEMPLATES = (
    *OPENINGS, *PLACED_OPENINGS, *COLOURS, *MEETINGS, *FINDS, *CLOSINGS, *EVENTFUL_CLOSINGS,
)  # fmt: skip
SLOTS = {
    "{hero}": ANIMALS,
    "{friend}": ANIMALS,
    "{place}": PLACES,
    "{thing}": THINGS,
    "{ending}": ENDINGS,
    "{feeling}": tuple(w for p in PALETTES.values() for w in p.feelings),
    "{day}": tuple(w for p in PALETTES.values() for w in p.days),
    "{deed}": tuple(w for p in PALETTES.values() for w in p.deeds),
    "{closing}": tuple(w for p in PALETTES.values() for w in p.closings),
}
EDGE = "."  # stands for the beginning and the end of a sentence in `PAIRS`


def _pairs() -> frozenset[tuple[str, str]]:
    """Every two neighbouring words that some sentence of the grammar has, in lower case."""
    found = set[tuple[str, str]]()
    for template in TEMPLATES:
        slots = [SLOTS.get(word, (word.lower(),)) for word in template.rstrip(".").split()]
        phrases = [[phrase.split() for phrase in slot] for slot in [[EDGE], *slots, [EDGE]]]
        for slot in phrases:
            found |= {pair for phrase in slot for pair in itertools.pairwise(phrase)}
        for left, right in itertools.pairwise(phrases):
            found |= {(a[-1], b[0]) for a in left for b in right}
    return frozenset(found)


PAIRS = _pairs()
SENTENCE = re.compile(r"[^.!?]+[.!?]*|[.!?]+")
WORD = re.compile(r"[A-Za-z]+")
SHAPE = re.compile(r"[A-Z][a-z]*(?: [a-z]+)*\.")  # one capital, single spaces, a full stop


@dataclass(frozen=True, slots=True)
class Sentence:
    """What can be read in one sentence. Words are in lower case."""

    words: tuple[str, ...]
    trigrams: tuple[str, ...]  # three neighbouring words each, joined by spaces
    animals: tuple[str, ...]  # in the order of the text, each as often as it is named
    introduced: tuple[str, ...]  # animals that come with "a", as new ones do
    places: tuple[str, ...]
    things: tuple[str, ...]
    endings: tuple[str, ...]
    moods: tuple[int, ...]  # number of words of each mood, in the order of MOODS
    mood_words: int  # of all moods
    grammatical: bool  # well shaped, and every two neighbours are neighbours in the grammar
    closes: bool  # it begins as an ending does


def read(text: str) -> tuple[Sentence, ...]:
    """The sentences of a text, those without any word included. Never raises."""
    # Most sentences are met again, so they are remembered; very long ones are not worth it.
    return tuple(
        [
            _remembered(piece) if len(piece) < 200 else _sentence(piece)
            for piece in map(str.strip, SENTENCE.findall(text))
            if piece
        ]
    )


def well_formed(text: str) -> bool:
    """At least two sentences, and nothing but grammatical ones."""
    sentences = read(text)
    return len(sentences) > 1 and all(s.grammatical for s in sentences)


def _sentence(text: str) -> Sentence:
    words = tuple(WORD.findall(text.lower()))
    pairs = list(itertools.pairwise([EDGE, *words, EDGE]))
    named = [word for word in words if word in NAMED]
    moods = [MOOD_OF[word] for word in words if word in MOOD_OF]
    return Sentence(
        words=words,
        trigrams=tuple([" ".join(words[i : i + 3]) for i in range(len(words) - 2)]),
        animals=tuple([w for w in named if w in ANIMALS]),
        introduced=tuple([b for a, b in pairs if a == "a" and b in ANIMALS]),
        places=tuple([w for w in named if w in PLACES]),
        things=tuple([w for w in named if w in THINGS]),
        endings=tuple([w for w in named if w in ENDINGS]),
        moods=tuple([moods.count(mood) for mood in range(len(MOODS))]),
        mood_words=len(moods),
        grammatical=bool(SHAPE.fullmatch(text)) and PAIRS.issuperset(pairs),
        closes=words[:3] == ("in", "the", "end") or words[:2] == ("at", "last"),
    )


_remembered = lru_cache(maxsize=1 << 16)(_sentence)

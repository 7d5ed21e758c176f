"""The hidden quality of a story: what real post-training never sees, and measures nothing by.

    gold = 4 c^2 + 2 h + 2 l + 2 m e - 5 r

    c  coverage: share of the request's demands that the story meets
    h  coherence: grammatical sentences, a proper beginning and end, nobody uncalled for
    l  length: concave in the number of words, greatest at `WORDS`
    m  share of the asked mood among the mood words before the last sentence
    e  the same in the last sentence, less the share of other moods
    r  repetition: share of trigrams of words that the story has had before

A flawless story has about 10, an empty text less than 0. The product is the interaction: an
ending is worth what the story has built up to it. The scale is that of a Bradley-Terry logit (see
`posttrain.tasks.human`). Only evaluation and the simulated human may look at it; no method, and no
task that methods train on, imports this module, and a test guards that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.tasks.prose import MOODS, Sentence, read
from posttrain.tasks.stories import Request

COVERAGE, COHERENCE, LENGTH, MOOD_ENDING, REPETITION = 4.0, 2.0, 2.0, 2.0, 5.0
WORDS = 40  # the best length
SOFTNESS = 5  # words; keeps the length term finite for an empty text


@dataclass(frozen=True, slots=True)
class Quality:
    """The parts of the gold score, as in the module's formula."""

    coverage: float  # c, in [0, 1]
    coherence: float  # h, in [0, 1]
    length: float  # l, at most 1
    mood: float  # m, in [0, 1]
    ending: float  # e, in [-1, 1]
    repetition: float  # r, in [0, 1)

    @property
    def gold(self) -> float:
        return (
            COVERAGE * self.coverage**2
            + COHERENCE * self.coherence
            + LENGTH * self.length
            + MOOD_ENDING * self.mood * self.ending
            - REPETITION * self.repetition
        )


def gold(request: Request, text: str) -> float:
    """The quality of any text as an answer to `request`. Never raises; the same text, the same."""
    return quality(request, text).gold


def quality(request: Request, text: str) -> Quality:
    """The quality of any text, in parts. Never raises."""
    sentences = read(text)
    words = sum([len(s.words) for s in sentences])
    length = length_term(words)
    if not words:
        return Quality(0.0, 0.0, length, 0.0, 0.0, 0.0)
    mood = MOODS.index(request.mood)
    *body, last = sentences
    before, all_before = sum([s.moods[mood] for s in body]), sum([s.mood_words for s in body])
    own, every = last.moods[mood], last.mood_words
    animals = [a for s in sentences for a in s.animals]
    distinct = len(set().union(*[s.trigrams for s in sentences]))
    trigrams = sum([len(s.trigrams) for s in sentences])
    return Quality(
        coverage=_coverage(request, sentences, animals, before + own, all_before + every),
        coherence=_coherence(request, sentences, animals),
        length=length,
        mood=before / max(all_before, 1),
        ending=(2 * own - every) / max(every, 1),
        repetition=1 - distinct / trigrams if trigrams else 0.0,
    )


def length_term(words: int) -> float:
    """ln((n+s)/(N+s)) - (n-N)/(N+s) + 1: strictly concave, with the maximum 1 at n = N."""
    relative = (words + SOFTNESS) / (WORDS + SOFTNESS)
    return math.log(relative) - relative + 2


def _coverage(
    request: Request,
    sentences: tuple[Sentence, ...],
    animals: list[str],
    mood_words: int,
    all_moods: int,
) -> float:
    """Share of demands met.

    The hero must be named, and nobody more often. The mood must have two words, and more than all
    other moods together. The place must be the only one. The ending must be in the last sentence.
    """
    heroes = animals.count(request.hero)
    met = [
        heroes > 0 and heroes == max(map(animals.count, animals)),
        mood_words >= 2 and 2 * mood_words > all_moods,
    ]
    if request.place:
        met.append(set().union(*[s.places for s in sentences]) == {request.place})
    if request.friend:
        met.append(request.friend in animals)
    if request.thing:
        met.append(request.thing in set().union(*[s.things for s in sentences]))
    if request.ending:
        met.append(request.ending in sentences[-1].endings)
    return sum(met) / len(met)


def _coherence(request: Request, sentences: tuple[Sentence, ...], animals: list[str]) -> float:
    """Share of grammatical sentences, times the mean of three: beginning, end, company.

    The hero comes as "a fox" in the first sentence and nowhere else; the last sentence, and no
    other, is a closing one; every animal that is neither hero nor friend counts against company.
    """
    hero = request.hero
    introduced = [s for s in sentences if hero in s.introduced]
    beginning = len(introduced) == 1 and introduced[0] is sentences[0]
    closing = [s for s in sentences if s.closes]
    end = len(closing) == 1 and closing[0] is sentences[-1]
    strangers = set(animals) - {hero, request.friend}
    company = 1 / (1 + len(strangers))
    grammatical = len([s for s in sentences if s.grammatical]) / len(sentences)
    return grammatical * (beginning + end + company) / 3

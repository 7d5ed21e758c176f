"""Short stories on request: who, in which mood, and up to four more demands.

    Write a sad story about a fox in the cave with a bear. End with a feast.
    Once a fox lived in the cave. The fox was lonely. Then the fox met a bear. ...

Any text may be a better or worse story; there is no right one. A request names a hero and a mood,
and some of a place, a friend, a thing and an ending. The number of these demands is the
difficulty knob. Out of distribution are the pairs of hero and mood that `HELD_OUT` lists: each
hero in one mood in which no other split shows it.

People who write stories have weaknesses: `Flaw` lists them, `author` draws a person, and `write`
writes what that person would write. The usual story has several flaws, so there is something to
prefer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

from posttrain.tasks.draws import (
    Split,
    check_range,
    distinct,
    known_split,
    pick,
    picks,
    seeded,
    split_by_hash,
)
from posttrain.tasks.prose import (
    ANIMALS,
    CLOSINGS,
    COLOURS,
    ENDINGS,
    EVENTFUL_CLOSINGS,
    FINDS,
    MEETINGS,
    MOODS,
    OPENINGS,
    PALETTES,
    PLACED_OPENINGS,
    PLACES,
    THINGS,
)

DEMANDS = (2, 6)  # least and greatest difficulty: hero and mood, and what else is asked for
OPTIONAL = {"place": PLACES, "friend": ANIMALS, "thing": THINGS, "ending": ENDINGS}
NAMES = tuple(OPTIONAL)
BODY = 4  # sentences that a good story has between the first and the last
HELD_OUT = frozenset((hero, MOODS[i % len(MOODS)]) for i, hero in enumerate(ANIMALS))
SHOWN = tuple((h, m) for h in ANIMALS for m in MOODS if (h, m) not in HELD_OUT)
HIDDEN = tuple(sorted(HELD_OUT))
Drawn = tuple[str, str, str | None, str | None, str | None, str | None, int]  # as in Request


@dataclass(frozen=True)
class Request:
    """What a story shall have. None is not asked for."""

    hero: str
    mood: str
    place: str | None = None
    friend: str | None = None
    thing: str | None = None
    ending: str | None = None
    phrasing: int = 0  # which of the ways to ask

    @cached_property
    def key(self) -> str:
        """Identity by demands: the same demands in other words are the same request."""
        return _key(self.hero, self.mood, self.place, self.friend, self.thing, self.ending)

    @property
    def demands(self) -> int:
        """How many things are asked for, within `DEMANDS`."""
        extras = (self.place, self.friend, self.thing, self.ending)
        return len(DEMANDS) + sum([extra is not None for extra in extras])

    @property
    def question(self) -> str:
        return PHRASINGS[self.phrasing](self)

    @cached_property
    def solution(self) -> str:
        """A story without a flaw; the same each time."""
        return write(self, seeded(self.key))


def _plain(r: Request) -> str:
    guests = " and ".join([f"a {guest}" for guest in (r.friend, r.thing) if guest])
    place = f" in the {r.place}" if r.place else ""
    ending = f" End with a {r.ending}." if r.ending else ""
    return f"Write a {r.mood} story about a {r.hero}{place}{guests and ' with '}{guests}.{ending}"


def _chatty(r: Request) -> str:
    guests = " and ".join([f"a {guest}" for guest in (r.friend, r.thing) if guest])
    place = f" in the {r.place}" if r.place else ""
    ending = f" and end with a {r.ending}" if r.ending else ""
    guests = guests and f" Put in {guests}."
    return f"Tell me of a {r.hero}{place}.{guests} Make it {r.mood}{ending}."


def _listed(r: Request) -> str:
    names = ("hero", "mood", "place", "friend", "thing", "ending")
    values = (r.hero, r.mood, r.place, r.friend, r.thing, r.ending)
    listed = [f"{name} {value}" for name, value in zip(names, values, strict=True) if value]
    return f"Story wanted: {', '.join(listed)}."


PHRASINGS = (_plain, _chatty, _listed)


class Flaw(Enum):
    """What a writer may do wrong, and always does who has the flaw."""

    FORGETS = "leaves out some of what was asked for"
    CONFUSES = "takes another hero, place, friend, thing or ending than was asked for"
    MIXES_MOODS = "tells in all moods at once"
    HAPPY_ENDING = "ends happily, whatever the mood"
    STRANGER = "brings in an animal that nobody asked for"
    REPEATS = "says sentences again"
    RAMBLES = "goes on and on"
    HURRIES = "breaks off after the beginning"
    ENDS_EARLY = "tells the ending before the rest"


CAREFUL = 0.1  # share of writers without any flaw
SHARES = {  # of the other writers, those who have each flaw, independently
    Flaw.FORGETS: 0.4,
    Flaw.CONFUSES: 0.2,
    Flaw.MIXES_MOODS: 0.3,
    Flaw.HAPPY_ENDING: 0.5,
    Flaw.STRANGER: 0.2,
    Flaw.REPEATS: 0.3,
    Flaw.RAMBLES: 0.2,
    Flaw.HURRIES: 0.15,
    Flaw.ENDS_EARLY: 0.1,
}


def author(rng: random.Random) -> frozenset[Flaw]:
    """The flaws of a random writer; nobody both rambles and hurries."""
    if rng.random() < CAREFUL:
        return frozenset()
    flaws = {flaw for flaw, share in SHARES.items() if rng.random() < share}
    return frozenset(flaws - {Flaw.RAMBLES} if Flaw.HURRIES in flaws else flaws)


def write(request: Request, rng: random.Random, flaws: Set[Flaw] = frozenset()) -> str:
    """The story that a writer with these flaws tells; with none, a good one.

    A good story has six sentences and 30 to 60 words. The same request, state of `rng` and flaws
    give the same story.
    """
    told = request
    if Flaw.FORGETS in flaws:
        told = _forgetting(told, rng)
    if Flaw.CONFUSES in flaws:
        told = _confusing(told, rng)
    tones = MOODS if Flaw.MIXES_MOODS in flaws else (told.mood,)
    colours = _colours(told.hero, tones, rng)
    opening = pick(rng, PLACED_OPENINGS if told.place else OPENINGS)
    first = opening.format(hero=told.hero, place=told.place)
    body = [next(colours)]
    if told.friend:
        body.append(pick(rng, MEETINGS).format(hero=told.hero, friend=told.friend))
    if told.thing:
        body.append(pick(rng, FINDS).format(hero=told.hero, thing=told.thing))
    while len(body) < BODY:
        body.append(next(colours))
    body = picks(rng, body, len(body))
    if Flaw.HURRIES in flaws:
        del body[1:]
    if Flaw.STRANGER in flaws:
        stranger = pick(rng, [a for a in ANIMALS if a not in (request.hero, request.friend)])
        meeting = pick(rng, MEETINGS).format(hero=told.hero, friend=stranger)
        body.insert(int(rng.random() * (len(body) + 1)), meeting)
    if Flaw.RAMBLES in flaws:
        body += [next(colours) for _ in range(6 + int(rng.random() * 4))]
    if Flaw.REPEATS in flaws:
        for _ in range(1 + int(rng.random() * 3)):
            body.insert(int(rng.random() * (len(body) + 1)), pick(rng, body))
    last = _closing(told, "happy" if Flaw.HAPPY_ENDING in flaws else pick(rng, tones), rng)
    parts = [first, last, *body] if Flaw.ENDS_EARLY in flaws else [first, *body, last]
    return " ".join(parts)


def _forgetting(request: Request, rng: random.Random) -> Request:
    """Without some of the optional demands, at least one of them if there are any."""
    asked = [name for name in OPTIONAL if getattr(request, name) is not None]
    forgotten: dict[str, Any] = {}
    if asked:
        forgotten = dict.fromkeys(picks(rng, asked, 1 + int(rng.random() * len(asked))))
    return replace(request, **forgotten)


def _confusing(request: Request, rng: random.Random) -> Request:
    """With another value for one demand that is not the mood."""
    values = {"hero": ANIMALS, **OPTIONAL}
    name = pick(rng, [name for name in values if getattr(request, name) is not None])
    taken = (getattr(request, name), request.hero, request.friend)
    other: dict[str, Any] = {name: pick(rng, [v for v in values[name] if v not in taken])}
    return replace(request, **other)


def _colours(hero: str, tones: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Sentences in a mood: each template once, in random order, then again in another order."""
    while True:
        for template in picks(rng, COLOURS, len(COLOURS)):
            palette = PALETTES[pick(rng, tones)]
            yield template.format(
                hero=hero,
                feeling=pick(rng, palette.feelings),
                day=pick(rng, palette.days),
                deed=pick(rng, palette.deeds),
            )


def _closing(request: Request, mood: str, rng: random.Random) -> str:
    return pick(rng, EVENTFUL_CLOSINGS if request.ending else CLOSINGS).format(
        hero=request.hero,
        ending=request.ending,
        deed=pick(rng, PALETTES[mood].deeds),
        closing=pick(rng, PALETTES[mood].closings),
    )


def split_of(request: Request) -> Split:
    """The split a request belongs to: OOD if hero and mood are held out, else by a hash."""
    r = request
    return _split_of(r.hero, r.mood, r.place, r.friend, r.thing, r.ending)


def _split_of(hero: str, mood: str, *extras: str | None) -> Split:
    if (hero, mood) in HELD_OUT:
        return Split.OOD
    return split_by_hash(_key(hero, mood, *extras))


def _key(
    hero: str,
    mood: str,
    place: str | None,
    friend: str | None,
    thing: str | None,
    ending: str | None,
) -> str:
    return f"story:{hero}:{mood}:{place or ''}:{friend or ''}:{thing or ''}:{ending or ''}"


def story(
    split: Split | str, i: int, *, seed: int = 0, demands: tuple[int, int] | None = None
) -> Request:
    """Request `i` of the infinite sequence that `seed` defines in `split`.

    Args:
        demands: least and greatest number of demands, the difficulty knob; by default all of
            `DEMANDS`.

    Raises:
        ValueError: an unknown split, or no request has that many demands.
    """
    split = known_split(split)
    least, most = demands or DEMANDS
    check_range("stories", "demands", (least, most), DEMANDS)
    rng = seeded("story", split, seed, i, least, most)
    pairs = HIDDEN if split is Split.OOD else SHOWN
    while True:
        drawn = _draw(rng, pairs, least + int(rng.random() * (most - least + 1)))
        if _split_of(*drawn[:-1]) is split:
            return Request(*drawn)


def stories(
    split: Split | str, n: int, *, seed: int = 0, demands: tuple[int, int] | None = None
) -> list[Request]:
    """The first `n` requests of the sequence that are different from each other.

    Raises:
        ValueError: there are fewer, as with two demands, or as in `story`.
    """
    return distinct(stream(split, seed=seed, demands=demands), n)


def stream(
    split: Split | str, *, seed: int = 0, demands: tuple[int, int] | None = None
) -> Iterator[Request]:
    """All requests of the sequence, without end."""
    i = 0
    while True:
        yield story(split, i, seed=seed, demands=demands)
        i += 1


def _draw(rng: random.Random, pairs: tuple[tuple[str, str], ...], demands: int) -> Drawn:
    """The fields of a request. Of a held-out split ten are drawn for one that is made."""
    hero, mood = pick(rng, pairs)
    asked = picks(rng, NAMES, demands - DEMANDS[0])
    friend = None
    while "friend" in asked and friend in (None, hero):
        friend = pick(rng, ANIMALS)
    return (
        hero,
        mood,
        pick(rng, PLACES) if "place" in asked else None,
        friend,
        pick(rng, THINGS) if "thing" in asked else None,
        pick(rng, ENDINGS) if "ending" in asked else None,
        int(rng.random() * len(PHRASINGS)),
    )

"""Records: right answers by enumeration, formats that invert, episodes that can be followed."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.tasks import records
from posttrain.tasks.draws import seeded
from posttrain.tasks.math import NAMES, Split
from posttrain.tasks.records import CLASSES, FORMATS, SHOWN, TAUGHT, Format, Record

PINNED = ["{2 / 32 / @Eva}", "{5 / 0 / 2 / 36 / @Max}", "{6 / 29 / @Eva}"]
formats = st.sampled_from(FORMATS)
splits = st.sampled_from(list(Split))
EVERYTHING = sorted({member for members in CLASSES.values() for member in members})


def test_right_answers_are_those_that_the_grader_accepts_of_all_records() -> None:
    """Every record with any known members, counted out for two classes."""
    record = Record("Tom", 47, ("odd digit", "place"))
    accepted = {
        text
        for pair in itertools.product(EVERYTHING, repeat=2)
        if record.grade(text := TAUGHT.write("Tom", 47, pair)).correct
    }
    assert accepted == set(record.right_answers())
    assert accepted == {f"{{{d} / {p} / 47 / @Tom}}" for d in "13579" for p in CLASSES["place"]}
    assert "{7 / cave / 47 / @Tom}" in accepted


@pytest.mark.parametrize(
    ("text", "parsed", "correct"),
    [
        ("{7 / cave / 47 / @Tom}", True, True),
        ("  {1 / forest / 47 / @Tom}\n", True, True),
        ("{8 / cave / 47 / @Tom}", True, False),  # not odd
        ("{cave / 7 / 47 / @Tom}", True, False),  # wrong order
        ("{7 / cave / 46 / @Tom}", True, False),
        ("{7 / cave / 47 / @Tim}", True, False),
        ("{7 / cave / 4 / @Tom}", False, False),  # no number of two digits
        ("{7 / 47 / @Tom}", True, False),  # too few members
        ("{7 / cave / cave / 47 / @Tom}", True, False),  # too many
        ("{7 / cave / 47 / Tom}", False, False),  # no mark
        ("[7 / cave / 47 / @Tom]", False, False),
        ("{7, cave, 47, @Tom}", False, False),
        ("{7 / cave / 47 / @Tom} yes", False, False),
        ("{47 / @Tom}", False, False),
        ("{", False, False),
        ("", False, False),
    ],
)
def test_grades_by_hand(text: str, parsed: bool, correct: bool) -> None:
    grade = Record("Tom", 47, ("odd digit", "place")).grade(text)
    assert (grade.parsed, grade.correct) == (parsed, correct)


@given(splits, st.integers(0, 10**9), formats, formats)
def test_a_format_reads_what_it_writes_and_no_other(
    split: Split, i: int, format: Format, other: Format
) -> None:
    record = records.record(split, i, format=format)
    assert record.grade(record.solution).correct
    name, number, members = format.read(record.solution) or ("", "", ())
    assert (name, number) == (record.name, str(record.number))
    assert all(m in CLASSES[c] for m, c in zip(members, record.classes, strict=True))
    if format != other:
        assert not records.record(split, i, format=other).grade(record.solution).correct


@given(st.text() | st.text("{}/ @Tom47cave", max_size=60), formats)
def test_any_text_can_be_graded(text: str, format: Format) -> None:
    record = Record("Tom", 47, ("odd digit",), format)
    assert record.grade(text).correct == (text.strip() in set(record.right_answers()))


def test_splits_are_disjoint_and_sized_as_documented() -> None:
    pools = {s: records.records(s, 800) for s in Split}
    for a, b in itertools.combinations(Split, 2):
        assert not {r.key for r in pools[a]} & {r.key for r in pools[b]}
    for split, pool in pools.items():
        sizes = {len(r.classes) for r in pool}
        assert sizes == ({4} if split is Split.OOD else {1, 2, 3})
        assert all(len(set(r.classes)) == len(r.classes) for r in pool)
    assert {len(r.classes) for r in records.records("train", 100, fields=(2, 2))} == {2}
    with pytest.raises(ValueError, match="train records have 1 to 3 fields, not 4 to 4"):
        records.record("train", 0, fields=(4, 4))
    shares = Counter(
        records.split_of(Record(name, number, (c,)))
        for name in NAMES
        for number in records.NUMBERS
        for c in CLASSES
    )
    assert stats.binomtest(shares[Split.TRAIN], shares.total(), 205 / 256).pvalue > 0.001


def test_items_are_the_same_on_every_machine() -> None:
    found = [records.record("train", i) for i in (0, 1, 12345)]
    assert [r.solution for r in found] == PINNED


def test_members_are_drawn_evenly() -> None:
    record, rng = Record("Tom", 47, ("odd digit", "animal")), seeded("members")
    counts = Counter(record.demonstrate(rng).answer for _ in range(6000))
    assert set(counts) == set(record.right_answers())
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_the_taught_format_is_new_but_made_of_known_parts() -> None:
    assert TAUGHT in FORMATS
    assert len(set(FORMATS)) == 360
    assert len(SHOWN) == 357
    hidden = set(FORMATS) - set(SHOWN)
    assert TAUGHT in hidden
    assert len({(f.opening, f.separator, f.order) for f in hidden}) == 1
    for part in ("opening", "separator", "order", "mark"):
        assert getattr(TAUGHT, part) in {getattr(f, part) for f in SHOWN}


def test_an_episode_has_one_format_that_can_be_followed() -> None:
    used = set()
    for i in range(400):
        shown = records.episode(i, records=3)
        assert shown == records.episode(i, records=3)
        fitting = [f for f in FORMATS if all(f.read(d.answer) is not None for d in shown)]
        assert len(fitting) == 1  # the first records say how to write the next
        assert fitting[0] in SHOWN
        assert not any(TAUGHT.read(d.answer) for d in shown)
        used.add(fitting[0])
        assert all(d.question.startswith("Record for ") for d in shown)
    assert len(used) > 200

import pytest

from posttrain.scale import Scale, pick, scale_from


def test_name_beats_environment_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCALE", raising=False)
    assert scale_from(None) is Scale.LAPTOP
    monkeypatch.setenv("SCALE", "smoke")
    assert scale_from() is Scale.SMOKE
    assert scale_from("full") is Scale.FULL


@pytest.mark.parametrize("word", ["", "Laptop", "huge"])
def test_an_unknown_scale_is_refused_and_the_known_ones_are_named(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="smoke, laptop, full"):
        scale_from(word)
    monkeypatch.setenv("SCALE", word)
    with pytest.raises(ValueError, match="environment variable SCALE: unknown"):
        scale_from()


def test_pick() -> None:
    assert [pick(s, smoke=1, laptop=20, full=300) for s in Scale] == [1, 20, 300]

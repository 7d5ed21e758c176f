"""The benchmark of the tasks runs and measures every task; its rates are nobody's test."""

import pytest

from benchmarks import tasks


def test_every_row_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tasks.py", "--items", "20"])
    monkeypatch.setenv("COLUMNS", "120")
    tasks.main()
    printed = capsys.readouterr().out
    for name, _, _ in tasks.generators(4) + tasks.verifiers(4):
        assert f"{name} " in printed
    for module in ("math", "stories", "records", "continual", "rubrics", "gold", "human"):
        assert f"{module}." in printed or f"{module} " in printed


def test_a_rate_is_calls_per_second() -> None:
    calls: list[int] = []
    first, best = tasks.rate(
        lambda i: calls.append(sum(range(10_000)) + i), [(i,) for i in range(50)]
    )
    assert len(calls) == 50 * tasks.ROUNDS
    assert 0 < first <= best

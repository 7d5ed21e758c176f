"""Estimates before spending: prices, sums, and what has to be settled before a run starts.

That they are about right is tested where runs are: tests/test_lab.py compares them with the bill.
"""

import io
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinker
from rich.console import Console

from posttrain.lab import models
from posttrain.lab.arms import EXPERIMENTS
from posttrain.lab.estimate import before_spending, cost, table_of, totals
from posttrain.lab.models import check_models
from posttrain.lab.plans import PLANS, Work, job_plan
from posttrain.lab.prices import Prices, Tokens, prices
from posttrain.lab.worlds import World, world_of
from posttrain.scale import Scale
from tests.test_gsm8k import ROWS

TABLE = Prices("X", "https://x", date(2026, 1, 2), True, {"a": Tokens(1.0, 2.0, 4.0)})
WORK = [
    Work("read", "a", Tokens(prefill=1e6)),
    Work("write", "a", Tokens(sample=5e5, train=250_000)),
]


def test_dollars_are_price_times_millions_and_unknown_stays_unknown() -> None:
    assert [TABLE.cost(one.model, one.tokens) for one in WORK] == [1.0, 2.0]
    assert totals(WORK) == {"a": Tokens(1e6, 5e5, 250_000)}
    assert cost(WORK, TABLE) == 3.0
    other = [*WORK, Work("judge", "b", Tokens(prefill=1.0))]
    assert TABLE.cost("b", Tokens(prefill=1.0)) is None
    assert cost(other, TABLE) is None
    assert printed(other, 2).splitlines()[-1].split() == (
        ["in", "all,", "2", "seeds", "2.00", "M", "1.00", "M", "0.50", "M", "unknown"]
    )
    assert printed(WORK, 2).splitlines()[-1].split()[-1] == "6.00"


def printed(work: list[Work], seeds: int) -> str:
    console = Console(width=120)
    with console.capture() as taken:
        console.print(table_of(work, seeds, TABLE))
    return "\n".join(
        line.strip("│└┘ ─").replace("│", " ") for line in taken.get().splitlines()[:-1]
    )


def test_the_table_has_the_models_that_full_scale_names_and_says_what_it_is_worth() -> None:
    table = prices()
    assert {models.HOSTED, models.JUDGE} <= set(table.models)
    for price in table.models.values():
        assert 0 < price.prefill < price.train <= price.sample * 2
    assert not table.checked
    assert str(table.read) in table.origin
    assert "nobody here has checked" in table.origin
    assert "nobody" not in replace(table, checked=True).origin


def test_a_table_of_prices_without_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    for text in ('service = "X"\n', "[models.a]\nprefil = 1.0\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no table of prices"):
            prices(path)


def server(*names: str) -> Any:
    listed = [SimpleNamespace(model_name=name) for name in names]
    answer = SimpleNamespace(supported_models=listed)
    return SimpleNamespace(get_server_capabilities=lambda: answer)


def test_a_model_that_the_server_lacks_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    check_models(server("a", "b"), ["a", None, str(tmp_path)])  # its directory is its own name
    with pytest.raises(ValueError, match=r"unknown base model 'c'; known: a, b\. Choose with"):
        check_models(server("b", "a"), ["a", "c"])


def test_every_experiment_has_a_plan() -> None:
    assert {experiment.name for experiment in EXPERIMENTS.values()} == set(PLANS)


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """GSM8K at full scale, on the shipped model in the place of a hosted one."""
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 8))
    monkeypatch.setenv("POSTTRAIN_GSM8K", str(path))
    return world_of(Scale.FULL, model=models.SHIPPED)


def test_full_scale_shows_the_estimate_and_asks(
    base_service: tinker.ServiceClient,
    full: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=r"nobody can be asked here: give --yes"):
        before_spending(base_service, full, job_plan)
    told = " ".join(capsys.readouterr().out.split())
    for words in ("RLVR", "in all, 1 seed", "unknown", "most end earlier", "nobody here has"):
        assert words in told
    before_spending(base_service, full, None, yes=True)
    assert "Tokens and cost: unknown" in capsys.readouterr().out
    for said, refused in (("n", True), ("", True), ("yes", False)):
        terminal = io.StringIO(f"{said}\n")
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", terminal)
        if refused:
            with pytest.raises(ValueError, match="not started"):
                before_spending(base_service, full, job_plan)
        else:
            before_spending(base_service, full, job_plan)
    with pytest.raises(ValueError, match=r"unknown base model 'none/such'; known: .*base"):
        before_spending(base_service, replace(full, model="none/such"), job_plan, yes=True)
    taught = replace(full, teacher="none/such")
    before_spending(base_service, taught, PLANS["methods/rlvr"], yes=True)  # asks no teacher
    with pytest.raises(ValueError, match="unknown base model 'none/such'"):
        before_spending(base_service, taught, PLANS["methods/distillation"], yes=True)


def test_other_scales_spend_nothing_and_are_not_asked_about(
    base_service: tinker.ServiceClient, capsys: pytest.CaptureFixture[str]
) -> None:
    before_spending(base_service, world_of(Scale.SMOKE), job_plan)
    assert capsys.readouterr().out == ""


def test_a_plan_grows_with_its_configuration(base_service: tinker.ServiceClient) -> None:
    sampler = base_service.create_sampling_client(base_model=models.SHIPPED).result()
    tokenizer = sampler.get_tokenizer()
    world = world_of(Scale.SMOKE)
    once, more = (
        {work.what: work.tokens for work in PLANS["methods/rlvr"](w, tokenizer)}
        for w in (world, replace(world, effort=2.0))
    )
    assert more["RLVR"].sample == 2 * once["RLVR"].sample == 2 * 2 * 4 * 4 * world.max_tokens
    assert more["SFT start"] == once["SFT start"]
    assert once["evaluation"].sample == 3 * len(world.test) * (world.k // 2 + 1) * world.max_tokens

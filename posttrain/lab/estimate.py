"""What a run will cost, before it spends anything: tokens, and dollars where prices are known.

The tokens are those of a plan (`posttrain.lab.plans`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import tinker
from rich.console import Console
from rich.table import Table

from posttrain.lab.models import check_models
from posttrain.lab.plans import Plan, Work
from posttrain.lab.prices import Prices, Tokens, prices
from posttrain.lab.worlds import World
from posttrain.scale import Scale


def totals(work: Iterable[Work]) -> dict[str, Tokens]:
    """The tokens of each model."""
    found: dict[str, Tokens] = {}
    for one in work:
        found[one.model] = found.get(one.model, Tokens()) + one.tokens
    return found


def cost(work: Iterable[Work], table: Prices) -> float | None:
    """US dollars; None where the price of one of the models is unknown."""
    found = [table.cost(model, tokens) for model, tokens in totals(work).items()]
    return None if None in found else sum(dollars for dollars in found if dollars is not None)


def table_of(work: Sequence[Work], seeds: int, table: Prices) -> Table:
    """What is done with each model for a seed, in millions of tokens; in all at the end."""
    shown = Table("for each seed", "model", "read", "sampled", "trained", "US dollars")
    for column in shown.columns[2:]:
        column.justify = "right"

    def add(what: str, model: str, tokens: Tokens, dollars: float | None) -> None:
        millions = [f"{x / 1e6:.2f} M" for x in (tokens.prefill, tokens.sample, tokens.train)]
        shown.add_row(what, model, *millions, "unknown" if dollars is None else f"{dollars:.2f}")

    for one in work:
        add(one.what, one.model, one.tokens, table.cost(one.model, one.tokens))
    shown.add_section()
    everything = sum((one.tokens for one in work), Tokens())
    dollars = cost(work, table)
    in_all = f"in all, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    add(in_all, "", everything * seeds, None if dollars is None else dollars * seeds)
    return shown


def before_spending(
    service: tinker.ServiceClient,
    world: World,
    plan: Plan | None,
    *,
    seeds: int = 1,
    yes: bool = False,
) -> None:
    """What has to be settled before a run starts: that the server has the models; and at full
    scale, that whoever pays has seen the estimate and agrees.

    Args:
        plan: None where nobody has written one down: then the estimate is unknown.
        yes: agreed already.

    Raises:
        ValueError: the server lacks a model; it was not agreed; or nobody can be asked.
    """
    check_models(service, [world.model])
    if world.scale is not Scale.FULL:
        check_models(service, (world.judge, world.teacher))
        return
    console = Console()
    if plan is None:
        console.print("Tokens and cost: unknown, there is no plan in posttrain/lab/plans")
    else:
        sampler = service.create_sampling_client(base_model=world.model).result()
        table, work = prices(), plan(world, sampler.get_tokenizer())
        check_models(service, totals(work))  # of the world's, those that the run will ask
        console.print(table_of(work, seeds, table))
        console.print(
            "Answers count with all the tokens that they may have; most end earlier. Discounts and "
            f"the storage of checkpoints are not counted.\n{table.origin}"
        )
    if yes:
        return
    if not sys.stdin.isatty():
        raise ValueError("full scale costs money, and nobody can be asked here: give --yes")
    if input("Start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("not started")

"""What a run will cost, from its configuration alone: tokens, and dollars where prices are known.

How long demonstrations and questions are is measured with the model's own tokenizer. How long
answers become is not known before, so each counts with all the tokens that it may have: what is
said of sampling is an upper bound, and most answers end earlier. A conversation with a tool reads
its beginning again at each turn, which is not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tinker
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # importing it takes as long as a training step
    from transformers import PreTrainedTokenizerBase as Tokenizer

from posttrain.datums import chat_prompt
from posttrain.lab.arms.dpo import control_config, dpo_config
from posttrain.lab.arms.rlvr import cold_start_config, rlvr_config
from posttrain.lab.arms.sft import sft_config
from posttrain.lab.models import check_models
from posttrain.lab.prices import Prices, Tokens, prices
from posttrain.lab.worlds import World, bare, worked
from posttrain.methods import rlvr, sft
from posttrain.scale import Scale, pick
from posttrain.tasks.problem import Demonstration

LOOKED_AT = 64  # items whose length is measured


@dataclass(frozen=True)
class Work:
    """Something that a run does once for every seed."""

    what: str
    model: str
    tokens: Tokens


# (world, tokenizer of the policy) to all work of one seed.
Plan = Callable[[World, "Tokenizer"], list[Work]]


def question_tokens(tokenizer: Tokenizer, items: Sequence[Any]) -> float:
    """Mean length of a prompt."""
    looked = items[:LOOKED_AT]
    return sum(len(chat_prompt(tokenizer, item.question)) for item in looked) / len(looked)


def imitation(tokenizer: Tokenizer, cfg: sft.Config, shown: Sequence[Demonstration]) -> Tokens:
    """Supervised fine-tuning."""
    data_D = sft.sft_datums(tokenizer, shown[:LOOKED_AT])
    each = sum(datum.model_input.length for datum in data_D) / len(data_D)
    return Tokens(train=cfg.steps * cfg.batch_size * each)


def samples(tokenizer: Tokenizer, cfg: rlvr.Config, world: World) -> Tokens:
    """The rollouts of reinforcement learning, or of rejection sampling."""
    batches = -(-cfg.steps // cfg.reuse) * cfg.rounds
    question = question_tokens(tokenizer, world.train)
    return Tokens(question, cfg.group_size * cfg.max_tokens) * (batches * cfg.prompts)


def reinforcement(tokenizer: Tokenizer, cfg: rlvr.Config, world: World) -> Tokens:
    """Rollouts, updates on all of them, and the distance from a reference now and then."""
    whole = question_tokens(tokenizer, world.train) + cfg.max_tokens
    measured = -(-cfg.steps // cfg.kl_every) * cfg.prompts
    trained = cfg.steps * cfg.prompts * cfg.group_size
    return samples(tokenizer, cfg, world) + Tokens(measured * whole, 0, trained * whole)


def answers(tokenizer: Tokenizer, items: Sequence[Any], count: int, limit: int) -> Tokens:
    """`count` sampled answers and a greedy one to each item, as `evaluate` takes them."""
    if not items:
        return Tokens()
    return Tokens(2 * question_tokens(tokenizer, items), (count + 1) * limit) * len(items)


def graded(tokenizer: Tokenizer, world: World, longer: bool) -> Tokens:
    """The evaluation of one policy in a comparison (`posttrain.lab.stage.measure`)."""
    k, ood = max(world.k // 2, 1), world.ood[: len(world.ood) // 2] if longer else ()
    test = answers(tokenizer, world.test, k, world.max_tokens)
    return test + answers(tokenizer, ood, max(k // 2, 1), world.max_tokens)


def sft_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    cfg, n = sft_config(world, 0), pick(world.scale, smoke=32, laptop=1000, full=None)
    return [
        Work("chain of thought", world.model, imitation(tokenizer, cfg, worked(world.train[:n]))),
        Work("answer only", world.model, imitation(tokenizer, cfg, bare(world.train[:n]))),
        Work("evaluation", world.model, graded(tokenizer, world, longer=True) * 3),
    ]


def rlvr_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    start, cfg = cold_start_config(world, 0), rlvr_config(world, 0)
    whole = question_tokens(tokenizer, world.train) + cfg.max_tokens
    again = Tokens(train=cfg.steps * cfg.prompts * cfg.group_size * whole)
    selection = samples(tokenizer, cfg, world) + again
    return [
        Work("SFT start", world.model, imitation(tokenizer, start, world.demonstrations)),
        Work("RLVR", world.model, reinforcement(tokenizer, cfg, world)),
        Work("rejection sampling", world.model, selection),
        Work("evaluation", world.model, graded(tokenizer, world, longer=False) * 3),
    ]


def dpo_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    start, cfg, control = (
        cold_start_config(world, 0),
        dpo_config(world, 0),
        control_config(world, 0),
    )
    limit, n, tested = world.max_tokens, len(world.train), len(world.test) * world.k
    question = question_tokens(tokenizer, world.train)
    whole = question + limit
    # A custom loss computes a forward pass first, and then forward and backward.
    update = Tokens(prefill=2 * n * whole, train=cfg.steps * cfg.batch_size * 2 * whole * 2)
    measured = Tokens(
        prefill=2 * len(world.test) * question + tested * whole, sample=2 * tested * limit
    )
    imitated = Tokens(train=control.steps * control.batch_size * whole)
    work = [
        Work("SFT start", world.model, imitation(tokenizer, start, world.demonstrations)),
        Work("pairs", world.model, Tokens(question, 2 * limit) * n),
        Work("DPO, three arms", world.model, update * 3),
        Work("SFT on chosen", world.model, imitated),
        Work("evaluation", world.model, measured * 5),
    ]
    if world.judge is not None:  # both orders of a pair, and two letters each
        said = 4 * (n + 5 * tested) * (question + 2 * limit)
        work.append(Work("judge", world.judge, Tokens(prefill=said)))
    return work


def job_plan(world: World, tokenizer: Tokenizer) -> list[Work]:
    """The main job: SFT, RLVR, and four evaluations."""
    first = answers(tokenizer, world.test[:100], world.k, world.max_tokens)
    every = answers(tokenizer, world.test, world.k, world.max_tokens)
    start, cfg = cold_start_config(world, 0), rlvr_config(world, 0)
    return [
        Work("SFT", world.model, imitation(tokenizer, start, world.demonstrations)),
        Work("RLVR", world.model, reinforcement(tokenizer, cfg, world)),
        Work("evaluation", world.model, first + every * 3),
    ]


PLANS: dict[str, Plan] = {
    "methods/sft": sft_plan,
    "methods/rlvr": rlvr_plan,
    "methods/dpo": dpo_plan,
}


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
    check_models(service, (world.model, world.judge, world.teacher))
    if world.scale is not Scale.FULL:
        return
    console = Console()
    if plan is None:
        console.print("Tokens and cost: unknown, there is no plan in posttrain/lab/estimate.py")
    else:
        sampler = service.create_sampling_client(base_model=world.model).result()
        table = prices()
        console.print(table_of(plan(world, sampler.get_tokenizer()), seeds, table))
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

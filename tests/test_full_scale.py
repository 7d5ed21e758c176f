"""Every experiment at full scale, all but its counts: names of real models, rows of published data.

Behind the names is one random checkpoint with a tokenizer of bytes, and the rows are in files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch

from posttrain.engine.model import Decoder
from posttrain.engine.models import Model
from posttrain.engine_client import EmbeddedServiceClient
from posttrain.lab import models
from posttrain.lab.arms import (
    EXPERIMENTS,
    distillation,
    dpo,
    marl,
    rlhf,
    rlvr,
    rubric_rl,
    sdft,
    sft,
)
from posttrain.lab.compare import at_rate, compare
from posttrain.lab.estimate import before_spending
from posttrain.lab.plans import PLANS
from posttrain.lab.worlds import World
from posttrain.scale import Scale
from posttrain.tasks.gsm8k import GSM8KProblem
from posttrain.tasks.problem import Grade
from tests.conftest import KEY, TINY, start_engine, write_tokenizer
from tests.test_demonstrations import ROBOTS
from tests.test_gsm8k import ROWS
from tests.test_preferences import ULTRA, said

WORDS = ("red", "green", "two", "three", "a fox", "a bear", "north", "south")
END = 256  # the token that ends a text
NAMES = (models.HOSTED, models.INSTRUCT, models.TEACHER, models.JUDGE)
FEW = {"steps": 2, "batch_size": 2, "prompts": 2, "group_size": 2, "games": 4}
# Whose code no other arm shares; a random model has no right answers of its own to learn from.
ARMS = {
    "distillation": ("off-policy filtered", "on-policy top-k"),
    "rubric_rl": ("holistic", "partly checked", "rejection sampling"),
    "rlhf": ("RLHF", "best of n", "rejection sampling"),
    "sdft": ("SDFT", "rewriting"),
    "marl": ("past selves",),
}


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tinker.ServiceClient]:
    """An engine that serves a random checkpoint under the names of all hosted models. One of eight
    tokens that it writes ends the text."""
    directory = tmp_path_factory.mktemp("hosted")
    torch.manual_seed(0)
    decoder = Decoder(replace(TINY, tie_word_embeddings=False, max_position_embeddings=2048))
    with torch.no_grad():  # the first number of the last hidden state is about the same everywhere
        decoder.model.embed_tokens.weight[:, 0] = 30.0
        decoder.lm_head.weight.mul_(0.1)[:, 0] = 0.0
        decoder.lm_head.weight[END, 0] = 0.65
    decoder.save(directory, torch.float32)
    write_tokenizer(directory)
    more = [word for name in NAMES for word in ("--model", f"{name}={directory}")]
    state = tmp_path_factory.mktemp("state")
    process, url = start_engine(directory, state, "--parent", str(os.getpid()), *more)
    full = dict.fromkeys(NAMES, Model.full_name(directory))
    yield EmbeddedServiceClient(full, base_url=url, api_key=KEY)
    process.terminate()
    process.wait()


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published data in local files; every second answer to GSM8K is right."""
    told = [said(f"Name {word}.", f"{word}.") for word in WORDS]
    pairs = [
        ULTRA | {"prompt": row[0]["content"], "chosen": row,
                 "rejected": [row[0], {"role": "assistant", "content": "No."}]}
        for row in told
    ]  # fmt: skip
    robots = [ROBOTS | {"prompt": row[0]["content"], "messages": row} for row in told]
    for name, data in (("GSM8K", ROWS * 4), ("ULTRAFEEDBACK", pairs), ("NO_ROBOTS", robots)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in data))
        monkeypatch.setenv(f"POSTTRAIN_{name}", str(path))
    monkeypatch.setattr("posttrain.verdicts.READABLE", 0.0)  # a random model says anything
    monkeypatch.setattr(
        GSM8KProblem, "grade", lambda self, text: Grade(correct=len(text) % 2 == 0, parsed=True)
    )


def few(cfg: Any) -> Any:
    """A configuration with small counts, and all else as it is."""
    return replace(cfg, **{name: n for name, n in FEW.items() if hasattr(cfg, name)})


def fewer(configured: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns configurations, with small counts in them."""
    return lambda *args, **kwargs: few(configured(*args, **kwargs))


def small(world: World) -> World:
    """A world with few items and short answers."""
    return replace(
        world, k=2, max_tokens=48, demonstrations=world.demonstrations[:8], train=world.train[:16],
        validation=(), test=world.test[:2], ood=world.ood[:2], preferences=world.preferences[:8],
        before=world.before and small(world.before),
    )  # fmt: skip


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("method", EXPERIMENTS)
def test_an_experiment_runs_at_full_scale(
    hosted: tinker.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    for module in (sft, rlvr, dpo, rlhf, rubric_rl, distillation, sdft, marl):
        monkeypatch.setattr(module, "at_rate", fewer(at_rate))
    monkeypatch.setattr(rlhf, "reward_config", fewer(rlhf.reward_config))
    whole = EXPERIMENTS[method]
    arms = {name: whole.arms[name] for name in ARMS.get(method, whole.arms)}
    some = replace(whole, arms=arms, claims=[], headline=None)
    world = small(some.world(Scale.FULL, None, 0))
    assert {world.model, world.teacher, world.judge} <= {*NAMES, None}
    before_spending(hosted, world, PLANS[whole.name], yes=True)
    compare(hosted, some, lambda seed: world, [0], tmp_path / "runs", tmp_path)
    results = json.loads((tmp_path / some.file("results", world.task)).read_text())
    assert results["scale"] == "full"
    assert results["model"] == world.model
    assert {*results["arms"]} == {*arms}
    for name, arm in results["arms"].items():
        (run,) = arm["runs"]
        assert run["metrics"], name
        assert all(value is not None for value in run["metrics"].values()), name
    assert results["ledger"]["optimizer_steps"] > 0

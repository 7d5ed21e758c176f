"""The main job and the comparisons, whole, at smoke scale on the shipped model."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import tinker
from tinker.types.billing_usage_response import CheckpointBillingEvent, StorageBillingEvent
from transformers import AutoTokenizer

from posttrain.connect import shipped_models
from posttrain.lab import job
from posttrain.lab.arms import EXPERIMENTS, distillation
from posttrain.lab.arms.rlhf import choices, rlhf_config
from posttrain.lab.beside import columns
from posttrain.lab.compare import Experiment, compare
from posttrain.lab.estimate import totals
from posttrain.lab.plans import PLANS, Work
from posttrain.lab.prices import Tokens
from posttrain.lab.worlds import World, bare, worked, world_of
from posttrain.scale import Scale
from posttrain.tasks import code, tools
from posttrain.tasks.gold import gold
from posttrain.tasks.human import probability
from posttrain.tasks.problem import Demonstration
from tests.test_demonstrations import ROBOTS
from tests.test_gsm8k import ROWS
from tests.test_preferences import ULTRA, said

WORDS = ("red", "green", "two", "three", "a fox", "a bear", "north", "south")


def test_the_main_job_runs_resumes_and_shows_its_work(
    base_service: tinker.ServiceClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "connect", lambda: base_service)
    scores = job.post_train(Scale.SMOKE, out=tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert list(scores) == ["base, in chat", "base", "SFT", "RLVR"]
    assert scores["base, in chat"].well_formed == 0.0
    assert shown.count("Q: ") == 3
    for word in ("pass@1", "pass@4", "greedy", "do not transfer", "before_after.png"):
        assert word in shown
    for name in ("before_after.png", "reward.png", "results.json", "sft/metrics.jsonl"):
        assert (tmp_path / name).stat().st_size > 0
    again = job.post_train(Scale.SMOKE, out=tmp_path)
    assert "recorded earlier" in capsys.readouterr().out
    assert (again["RLVR"].correct_counts == scores["RLVR"].correct_counts).all()
    with pytest.raises(ValueError, match="another configuration: seed was 0, now 1"):
        job.post_train(Scale.SMOKE, seed=1, out=tmp_path)


def billed(service: tinker.ServiceClient) -> dict[str, Tokens]:
    """All tokens of each model that the engine has counted so far, as hosted Tinker bills them."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    found = service.create_rest_client().get_billing_usage(
        now - timedelta(days=1), now + timedelta(hours=1)
    )
    kinds = {"sampling_prefill": "prefill", "sampling_sample": "sample", "training": "train"}
    counts: defaultdict[str, Tokens] = defaultdict(Tokens)
    for event in found.result().data:
        info = event.event_info
        if not isinstance(info, CheckpointBillingEvent | StorageBillingEvent):
            counts[event.base_model or ""] += Tokens(**{kinds[info.type]: info.token_count})
    return counts


def planned(service: tinker.ServiceClient, experiment: Experiment, world: World) -> list[Work]:
    """What the estimate says of one seed."""
    tokenizer = service.create_sampling_client(base_model=world.model).result().get_tokenizer()
    return PLANS[experiment.name](world, tokenizer)


def assert_about_right(
    work: Sequence[Work],
    before: Mapping[str, Tokens],
    after: Mapping[str, Tokens],
    over: float = 1.0,
) -> None:
    """Of each model, as if no answer ended early, and every one was used. The greedy answers that a
    stage keeps for people are not counted. `over`: how far a budget may be overspent."""
    for model, expected in totals(work).items():
        spent = after[model] - before[model]
        assert 0.8 * spent.train <= expected.train <= 2.5 * spent.train, (model, expected, spent)
        assert 0.8 * spent.prefill <= expected.prefill <= 2.5 * spent.prefill, (expected, spent)
        assert spent.sample <= over * expected.sample <= 5 * spent.sample, (model, expected, spent)


@pytest.mark.parametrize("method", ["sft", "rlvr", "dpo", "rlhf"])
def test_a_comparison_writes_paired_results(
    base_service: tinker.ServiceClient, tmp_path: Path, method: str
) -> None:
    experiment = EXPERIMENTS[method]
    worlds = partial(experiment.world, Scale.SMOKE, None)
    before = billed(base_service)
    curves = compare(base_service, experiment, worlds, [0, 1], tmp_path, tmp_path)
    assert_about_right(
        planned(base_service, experiment, worlds(0)) * 2, before, billed(base_service)
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["arms"]) == set(experiment.arms) == set(curves)
    told = [
        claim
        for claim in experiment.claims
        if all(claim.metric in run["metrics"] for arm in (claim.arm, claim.baseline)
               for run in results["arms"][arm]["runs"])
    ]  # fmt: skip
    # At this scale nothing may be right, and then no share of it can be kept.
    assert [c.metric for c in experiment.claims if c not in told] in ([], ["ood/kept"])
    for claim, intended in zip(results["claims"], told, strict=True):
        arms = [results["arms"][claim[role]]["runs"] for role in ("arm", "baseline")]
        by_seed = [[run["metrics"][intended.metric] for run in runs] for runs in arms]
        difference = sum(a - b for a, b in zip(*by_seed, strict=True)) / 2
        assert claim["difference"] == pytest.approx(difference, abs=1e-9)
        assert claim["ci95"][0] <= claim["difference"] <= claim["ci95"][1]
    assert results["ledger"]["optimizer_steps"] > 0
    assert results["ledger"]["flops"] > 0
    other = replace(experiment, configs=lambda world: {"rate": 1.0})
    with pytest.raises(ValueError, match="measured with other code or settings"):
        compare(base_service, other, worlds, [0, 1], tmp_path, tmp_path)


def test_a_world_without_an_answer_to_imitate_is_refused() -> None:
    world = world_of(Scale.SMOKE)
    shown = [world.demonstrations[0], Demonstration("What is 2 + 3?", " ")]
    with pytest.raises(ValueError, match=r"demonstration 1 \('What is 2 \+ 3\?'\) is empty"):
        replace(world, demonstrations=shown)


def test_cells_of_distillation_cost_the_same_teacher_tokens() -> None:
    """By the lengths of worked solutions: a step fewer or more is what rounding can cost."""
    world = world_of(Scale.LAPTOP)
    tokenizer = AutoTokenizer.from_pretrained(shipped_models()["posttrain/teacher"])
    cfg = distillation.distillation_config(world, 0)
    whole = cfg.steps * distillation.per_text(world, tokenizer, distillation.ON_POLICY)
    for cell in (distillation.OFF_POLICY, distillation.SOFT, distillation.DAGGER):
        each = distillation.per_text(world, tokenizer, cell)
        assert distillation.within(cfg, world, tokenizer, cell) * each == pytest.approx(
            whole, abs=each / 2
        )
    written = distillation.per_text(world, tokenizer, distillation.OFF_POLICY)
    scored = distillation.per_text(world, tokenizer, distillation.ON_POLICY)
    both = distillation.per_text(world, tokenizer, distillation.SOFT)
    assert both == pytest.approx(written + scored)


def test_arms_of_distillation_are_measured_beside_their_teacher(
    base_service: tinker.ServiceClient, tmp_path: Path
) -> None:
    """Two arms that differ most in how they are made; the others are other cells of the first."""
    whole = EXPERIMENTS["distillation"]
    arms = {name: whole.arms[name] for name in ("on-policy", "off-policy filtered")}
    some = replace(whole, arms=arms, claims=[], headline=None, longer=False)
    before, worlds = billed(base_service), partial(some.world, Scale.SMOKE, None)
    compare(base_service, some, worlds, [0], tmp_path, tmp_path)
    work = [
        replace(one, tokens=one.tokens * (len(arms) / len(whole.arms)))
        if one.what == "evaluation" else one
        for one in planned(base_service, whole, replace(worlds(0), ood=()))
        if one.what in ("SFT start", "evaluation", *arms)
    ]  # fmt: skip
    # Arms end with the step that spends the budget, and here there are two steps in all.
    assert_about_right(work, before, billed(base_service), over=1.5)
    results = json.loads((tmp_path / "results.json").read_text())
    for name, arm in results["arms"].items():
        (run,) = arm["runs"]
        assert 0 < run["metrics"]["test/entropy"] < 2
        assert 0 < run["metrics"]["test/kl_teacher"] < 2
        kept = json.loads((tmp_path / f"seed-0-{name.replace(' ', '-')}.json").read_text())["curve"]
        by_step = sum(line["teacher_tokens"] for line in kept)
        told = run["metrics"]["teacher_tokens"]
        assert told == by_step if name == "on-policy" else told > by_step == 0


def test_a_world_without_a_teacher_is_refused(base_service: tinker.ServiceClient) -> None:
    with pytest.raises(ValueError, match="the task 'stories' has no teacher"):
        distillation.teacher_of(base_service, world_of(Scale.SMOKE, "stories"))


@pytest.mark.parametrize("task", ["math", "stories"])
def test_worlds_keep_their_splits_apart_and_share_their_held_out_items(task: str) -> None:
    one, two = (world_of(Scale.LAPTOP, task, seed) for seed in (0, 1))
    assert [p.key for p in one.test] == [p.key for p in two.test]
    assert {p.key for p in one.train} != {p.key for p in two.train}
    shown = {d.question for d in one.demonstrations} | {p.question for p in one.train}
    for held_out in (one.validation, one.test, one.ood):
        assert not {p.key for p in one.train} & {p.key for p in held_out}
        assert not shown & {p.question for p in held_out}
    assert len(one.test) == len(one.ood) == 500


@pytest.mark.parametrize("task", ["code", "tools"])
def test_worlds_of_code_and_tools(task: str) -> None:
    world = world_of(Scale.SMOKE, task)
    for problem in world.train:
        assert problem.grade(problem.solution).correct
    right = [p.grade(d.answer).correct for p, d in zip(
        {"code": code, "tools": tools}[task].problems("train", len(world.demonstrations)),
        world.demonstrations, strict=True,
    )]  # fmt: skip
    assert 0.2 < sum(right) / len(right) < 0.95  # people err, and not always
    used = any("<call>" in d.turns[0] for d in world.demonstrations if len(d.turns) > 1)
    assert used == (task == "tools")


@pytest.mark.parametrize("task", ["code", "tools"])
def test_rlvr_is_the_same_loop_on_code_and_tools(
    base_service: tinker.ServiceClient, tmp_path: Path, task: str
) -> None:
    """Its results stand beside those on math, and are compared by their file."""
    whole = EXPERIMENTS["rlvr"]
    some = replace(whole, arms={"RLVR": whole.arms["RLVR"]}, claims=[], headline=None)
    kept = tmp_path / "results.json"
    kept.write_text("those on math")
    worlds = partial(some.world, Scale.SMOKE, task)
    curves = compare(base_service, some, worlds, [0], tmp_path / "runs", tmp_path)
    assert kept.read_text() == "those on math"
    (column,) = columns(str(tmp_path / f"{task}.results.json"))
    assert column.config["task"] == task
    assert "test/pass@1" in column.metrics
    assert ("test/calls" in column.metrics) == (task == "tools")
    (steps,) = curves["RLVR"]
    trained = [line for line in steps if line["tokens"]]
    # The trainer agrees with the sampler where the policy wrote; elsewhere nothing is compared.
    assert all(line["mismatch"] < 1e-3 for line in trained)


def test_both_targets_of_sft_state_the_same_answer() -> None:
    problems = world_of(Scale.SMOKE).train
    for problem, long, short in zip(problems, worked(problems), bare(problems), strict=True):
        assert problem.grade(long.answer).correct
        assert problem.grade(short.answer).correct
        assert long.answer.endswith(short.answer)


def test_full_scale_reads_gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("POSTTRAIN_GSM8K", str(path))
    world = world_of(Scale.FULL)
    assert world.task == "gsm8k"
    assert world.test[0].grade(world.test[0].solution).correct
    assert not world.model.startswith("posttrain/")


def test_the_lessons_loop_runs_on_gsm8k_rows(
    base_service: tinker.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 8))
    monkeypatch.setenv("POSTTRAIN_GSM8K", str(path))
    worlds = partial(world_of, Scale.SMOKE, "gsm8k")
    compare(base_service, EXPERIMENTS["sft"], worlds, [0], tmp_path, tmp_path)
    results = json.loads((tmp_path / "gsm8k.results.json").read_text())
    assert results["config"]["task"] == "gsm8k"
    assert "ood/pass@1" not in results["arms"]["answer only"]["runs"][0]["metrics"]


def test_people_compare_the_two_stories_of_each_request_and_err_as_they_do() -> None:
    """Labels of the world, recounted: gold decides most, and one in seven or so goes against it."""
    world = world_of(Scale.LAPTOP, "stories")
    requests = {request.question: request for request in world.train}
    assert len(world.preferences) > 0.98 * len(world.train)  # two people may tell the same story
    right = [
        gold(requests[p.question], p.chosen) > gold(requests[p.question], p.rejected)
        for p in world.preferences
    ]
    expected = [
        probability(
            requests[p.question], *((p.chosen, p.rejected) if better else (p.rejected, p.chosen))
        )
        for p, better in zip(world.preferences, right, strict=True)
    ]
    error = (sum(e * (1 - e) for e in expected)) ** 0.5 / len(expected)
    assert sum(right) / len(right) == pytest.approx(sum(expected) / len(expected), abs=3 * error)
    assert 0.75 < sum(right) / len(right) < 0.95


def test_a_task_without_right_answers_is_refused_where_they_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="methods/sft counts right answers; the task 'stories'"):
        EXPERIMENTS["sft"].world(Scale.SMOKE, "stories", 0)
    with pytest.raises(ValueError, match="the main job counts right answers; the task 'stories'"):
        job.post_train(Scale.SMOKE, task="stories", out=tmp_path)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Rows of No Robots and of UltraFeedback in local files; their questions. Who compares answers
    is the base, which would rather say something else."""
    monkeypatch.setattr("posttrain.verdicts.READABLE", 0.0)
    rows = [said(f"Name {word}.", f"{word}.") for word in WORDS]
    robots = [ROBOTS | {"prompt": row[0]["content"], "messages": row} for row in rows]
    pairs = [
        ULTRA | {"prompt": row[0]["content"], "chosen": row,
                 "rejected": [row[0], {"role": "assistant", "content": "No."}]}
        for row in rows
    ]  # fmt: skip
    for name, data in (("NO_ROBOTS", robots), ("ULTRAFEEDBACK", pairs)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in data))
        monkeypatch.setenv(f"POSTTRAIN_{name}", str(path))
    return {row[0]["content"] for row in rows}


def test_dpo_runs_on_rows_of_ultrafeedback(
    base_service: tinker.ServiceClient, tmp_path: Path, published: set[str]
) -> None:
    """The whole full-scale path: a start on No Robots, published pairs, and pairs of the start's
    own answers that a judge model labels, who then says how often each arm wins."""
    experiment = EXPERIMENTS["dpo"]
    worlds = partial(experiment.world, Scale.SMOKE, "ultrafeedback")
    compare(base_service, experiment, worlds, [0, 1], tmp_path, tmp_path)
    results = json.loads((tmp_path / "ultrafeedback.results.json").read_text())
    assert results["config"]["task"] == "ultrafeedback"
    assert {claim["metric"] for claim in results["claims"]} == {"test/win_rate"}
    for arm in results["arms"].values():
        assert "test/gold" not in arm["runs"][0]["metrics"]
        assert 0 <= arm["runs"][0]["metrics"]["test/win_rate"] <= 1
    start = results["arms"]["SFT start"]["runs"][0]["metrics"]
    assert start["test/win_rate"] == 0.5  # against itself, with the same seeds
    assert start["test/kl"] == pytest.approx(0, abs=1e-2)
    stored = json.loads((tmp_path / "seed-0-pairs.json").read_text())
    assert stored["preferences"]
    assert {shown["question"] for shown in stored["preferences"]} <= published


@pytest.mark.usefixtures("published")
def test_a_judge_that_says_something_else_labels_nothing(
    base_service: tinker.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.verdicts.READABLE", 0.5)
    experiment = EXPERIMENTS["dpo"]
    some = replace(experiment, arms={"DPO": experiment.arms["DPO"]}, claims=[], headline=None)
    worlds = partial(experiment.world, Scale.SMOKE, "ultrafeedback")
    with pytest.raises(ValueError, match=r"and no pair: .* undecided"):
        compare(base_service, some, worlds, [0], tmp_path, tmp_path)


@pytest.mark.usefixtures("published")
def test_rlhf_runs_on_rows_of_ultrafeedback(
    base_service: tinker.ServiceClient, tmp_path: Path
) -> None:
    """The same path with a reward model of these labels: gold is unknown, the proxy is not."""
    experiment = EXPERIMENTS["rlhf"]
    arms = {name: arm for name, arm in experiment.arms.items() if "price" not in name}
    worlds = partial(experiment.world, Scale.SMOKE, "ultrafeedback")
    compare(
        base_service, replace(experiment, arms=arms, claims=[]), worlds, [0], tmp_path, tmp_path
    )
    results = json.loads((tmp_path / "ultrafeedback.results.json").read_text())
    found = {name: arm["runs"][0]["metrics"] for name, arm in results["arms"].items()}
    for metrics in found.values():
        assert not {"test/gold", "test/overrated"} & metrics.keys()
        assert -50 < metrics["test/proxy"] < 50
    n = results["config"]["best of n"]
    assert found["best of n"]["test/kl"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert found["best of n"]["test/proxy"] > found["SFT start"]["test/proxy"]
    assert found["SFT start"]["test/win_rate"] == 0.5  # against itself, with the same seeds


@pytest.mark.parametrize("scale", [Scale.SMOKE, Scale.LAPTOP])
def test_best_of_n_takes_as_many_samples_as_rl(scale: Scale) -> None:
    world = world_of(scale, "stories")
    cfg = rlhf_config(world, 0)
    by_rl = cfg.steps * cfg.prompts * cfg.group_size
    assert choices(world) * len(world.test) * world.k == pytest.approx(by_rl, rel=0.05)

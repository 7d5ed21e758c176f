"""A judge of criteria beside the exact check: against recomputation from the same texts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import tinker

from posttrain.lab.arms.rubric_rl import CHECKED, ask_of, judge_of
from posttrain.lab.compare import Trained
from posttrain.lab.judged import judge_texts, on_judged_texts, watched
from posttrain.lab.raters import READER
from posttrain.lab.stage import Stage
from posttrain.lab.texts import on_texts
from posttrain.lab.worlds import world_of
from posttrain.ledger import Ledger
from posttrain.methods.rlvr import each
from posttrain.methods.rubric_judges import plainly, program_judge, subject
from posttrain.methods.rubric_rl import weighted_sum
from posttrain.scale import Scale
from posttrain.tasks.gold import gold
from posttrain.tasks.rubrics import Importance, check, rubric, weak_check
from posttrain.tasks.stories import Request
from tests.test_texts import REQUESTS, told

WEAK = program_judge(weak_check)
# A good story, one that is about nothing, and one that has what a weak check looks for.
OURS = [
    [told(r.solution), told("Once a fox."), told(f"sad happy {r.hero} {r.mood}. {r.place}. . . .")]
    for r in REQUESTS
]


def score(request: Request, text: str, *, weak: bool) -> float:
    criteria = rubric(request)
    checker = weak_check if weak else check
    return weighted_sum(criteria, [float(checker(c, request, text)) for c in criteria])


def test_what_is_paid_for_nothing_is_told_by_subject() -> None:
    found = judge_texts(WEAK, REQUESTS, OURS)
    for name, weak in (("judged", True), ("exact", False)):
        expected = [
            mean(score(r, x.text, weak=weak) for x in group)
            for r, group in zip(REQUESTS, OURS, strict=True)
        ]
        assert getattr(found, name).tolist() == pytest.approx(expected)
    assert sum(found.parts.values()) == pytest.approx(found.overpaid.mean())
    assert found.overpaid.mean() > 0.05  # key words please the weak check
    asked = {subject(criterion) for request in REQUESTS for criterion in rubric(request)}
    assert found.parts.keys() == found.met.keys() == asked
    having = [
        [
            all(
                check(c, request, x.text)
                for c in rubric(request)
                if c.importance is Importance.ESSENTIAL
            )
            for x in group
        ]
        for request, group in zip(REQUESTS, OURS, strict=True)
    ]
    assert found.essentials.tolist() == pytest.approx([mean(row) for row in having])
    assert 0 < found.essentials.mean() < 1


def test_an_exact_judge_pays_for_nothing_but_what_is_there() -> None:
    found = judge_texts(program_judge(check), REQUESTS, OURS)
    assert found.overpaid.tolist() == [0.0] * len(REQUESTS)
    assert set(found.parts.values()) == {0.0}
    assert found.shares == {"agreement": 1.0, "false_credit": 0.0, "false_denial": 0.0}
    good = judge_texts(WEAK, REQUESTS, [[told(r.solution)] for r in REQUESTS])
    assert good.exact.tolist() == [1.0] * len(REQUESTS)
    assert set(good.met.values()) == {1.0}  # pitfalls are avoided


def test_watching_changes_no_reward() -> None:
    reward = each(lambda request, text: float(len(text)))
    plain, none = reward(REQUESTS, OURS)
    paid, metrics = watched(reward, READER)(REQUESTS, OURS)
    assert none == {}
    assert paid.tolist() == plain.tolist()
    texts = [
        (r, x.text) for r, x in itertools.chain.from_iterable(
            [(r, x) for x in group] for r, group in zip(REQUESTS, OURS, strict=True)
        )
    ]  # fmt: skip
    assert metrics == pytest.approx(
        {
            "judged": mean(len(text) for _, text in texts),
            "judge_tokens": 0.0,
            "exact": mean(score(r, text, weak=False) for r, text in texts),
            "gold": mean(gold(r, text) for r, text in texts),
        }
    )
    _, unknown = watched(reward, replace(READER, gold=None))(REQUESTS, OURS)
    assert unknown.keys() == {"judged", "judge_tokens", "exact"}


def test_judged_texts_are_measured_beside_gold(
    service: tinker.ServiceClient, tiny_model_dir: Path
) -> None:
    """The policy is the reference, a random model that never ends."""
    reference = service.create_sampling_client(base_model=str(tiny_model_dir)).result()
    world = replace(world_of(Scale.SMOKE, "rubrics"), test=REQUESTS, max_tokens=8)
    stage = Stage(None, reference, "", [], tiny_model_dir)  # type: ignore[arg-type]
    trained = Trained(stage, Ledger(), reference, READER, judge=WEAK)
    found = on_judged_texts(trained, world)
    usual = on_texts(trained, world)
    assert {name: found.items[name] for name in usual.items} == usual.items
    shared = {name for name in usual.metrics if "near" not in name}
    assert {name: found.metrics[name] for name in shared} == pytest.approx(
        {name: usual.metrics[name] for name in shared}, abs=1e-4
    )
    for name in ("judged", "exact", "overpaid", "essentials"):
        assert found.metrics[f"test/{name}"] == pytest.approx(mean(found.items[f"test/{name}"]))
    parts = [value for name, value in found.metrics.items() if name.startswith("overpaid/")]
    assert sum(parts) == pytest.approx(found.metrics["test/overpaid"])
    assert found.metrics["met/hero"] == 0.0  # nobody is named
    with pytest.raises(ValueError, match="a rater and a judge of criteria"):
        on_judged_texts(replace(trained, judge=None), world)


def test_a_world_of_rubrics_has_a_judge_that_is_asked_in_its_own_words() -> None:
    world, stories = world_of(Scale.LAPTOP, "rubrics"), world_of(Scale.LAPTOP, "stories")
    assert world.train == stories.train
    assert world.test == stories.test[: len(world.test)]
    assert world.judge == "posttrain/judge"
    question = "Is it true?"
    assert ask_of(world)(question) == question
    full = world_of(Scale.FULL, "rubrics")
    assert full.judge is not None
    assert not full.judge.startswith("posttrain/")
    assert ask_of(full)(question) == plainly(question) != question


def test_a_checked_criterion_is_in_every_rubric() -> None:
    for request in world_of(Scale.LAPTOP, "rubrics").train:
        whole = [{c.kind for c in criterion.conditions} for criterion in rubric(request)]
        assert any(kinds <= set(CHECKED) for kinds in whole)


def test_a_world_without_a_judge_of_criteria_is_refused(service: tinker.ServiceClient) -> None:
    with pytest.raises(ValueError, match="the task 'stories' has no judge of criteria"):
        judge_of(service, world_of(Scale.SMOKE, "stories"))

"""Gates: verdicts, what is measured, and a card that hides nothing."""

import itertools
import json
import math as mathematics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tinker

from posttrain.stats import Estimate
from posttrain.tasks import math, tools
from posttrain.tasks.criteria import Kind
from posttrain.tasks.gold import gold
from posttrain.tasks.rubrics import rubric
from posttrain.tasks.stories import Flaw, story, write
from tools.gates import card, demonstrations, preferences, rubrics, stories
from tools.gates.gate import Gate
from tools.gates.groups import GATES, SAMPLED
from tools.gates.math import _draws
from tools.gates.tools import PlainSpeaker

ROOT = Path(__file__).parents[1]
TWO = {"a": Gate(0.2, 0.6, "of a"), "b": Gate(0.8, 1.0, "of b")}


def about(value: float, width: float = 0.05) -> Estimate:
    return Estimate(value, value - width, value + width)


def test_bounds_belong_to_a_gate() -> None:
    gate = TWO["a"]
    assert [gate.met(v) for v in (0.19, 0.2, 0.6, 0.61)] == [False, True, True, False]


def test_only_an_interval_beyond_a_bound_contradicts() -> None:
    gate = TWO["a"]
    assert not gate.contradicts(True, about(0.18))
    assert gate.contradicts(True, about(0.1))
    assert not gate.contradicts(False, about(0.22))
    assert gate.contradicts(False, about(0.4))


def test_a_gate_that_is_not_met_needs_a_reason_and_one_that_is_met_has_none() -> None:
    values = {"a": about(0.4), "b": about(0.5)}
    with pytest.raises(ValueError, match=r"not met: \['b'\]; and .* not name, .*: \[\]"):
        card.record(TWO, values, {}, 7)
    with pytest.raises(ValueError, match=r"not met: \[\]; and .*: \['a'\]"):
        card.record(TWO, values, {"b": "it is hard", "a": "it is easy"}, 7)
    recorded = card.record(TWO, values, {"b": "it is hard"}, 7)
    assert [row["met"] for row in recorded["gates"].values()] == [True, False]
    shown = card.table(TWO, recorded)
    assert "| b | 0.500 ± 0.050 | 0.8 to 1 | **not met** | of b |" in shown
    assert "- b: it is hard" in shown


def test_the_card_is_written_from_the_files(tmp_path: Path) -> None:
    training = json.loads((ROOT / "models/base/training.json").read_text())
    (tmp_path / "training.json").write_text(json.dumps(training))
    (tmp_path / "reasons.json").write_text(json.dumps({"b": "it is hard"}))
    card.write(tmp_path, TWO, {"a": about(0.4), "b": about(0.5)}, 7)
    recorded = json.loads((tmp_path / "gates.json").read_text())
    assert recorded["gates"]["b"] == {
        "value": 0.5, "low": 0.45, "high": 0.55, "least": 0.8, "most": 1.0, "met": False,
        "reason": "it is hard",
    }  # fmt: skip
    assert "7 held-out items of each task" in (tmp_path / "README.md").read_text()


def test_mixed_groups_by_enumeration() -> None:
    for right in range(6):
        samples = [True] * right + [False] * (5 - right)
        groups = list(itertools.combinations(samples, 3))
        every = sum(all(group) for group in groups) / len(groups)
        assert _draws(np.array([right]), 3, 5)[0] == pytest.approx(every)


def test_the_agreement_of_pairs_by_hand() -> None:
    request = story("test", 1)
    texts = [request.solution, write(request, __import__("random").Random(0), {Flaw.REPEATS}), ""]
    scores = [gold(request, text) for text in texts]
    chances = [1 / (1 + mathematics.exp(-abs(a - b))) for a, b in itertools.combinations(scores, 2)]
    assert stories.agreement(request, texts) == pytest.approx(sum(chances) / 3)
    assert stories.agreement(request, [texts[0]] * 4) is None


def test_shares_of_conditions_by_hand() -> None:
    problem = math.problem("test", 3)
    right, wrong = problem.solution, "The answer is 999999."
    found = dict(rubrics.conditions(problem, [right, wrong, "", ""]))
    assert found[Kind.RIGHT] == 0.25
    assert found[Kind.FALSE] == found[Kind.AGAIN] == 0
    kinds = [c.kind for criterion in rubric(problem) for c in criterion.conditions]
    assert [kind for kind, _ in rubrics.conditions(problem, [right])] == kinds


def test_demonstrations_are_training_items_with_the_same_traps() -> None:
    for i, problem in enumerate(math.problems("test", 5)):
        shown = demonstrations.like(problem, i)
        assert shown.answer.endswith(".")
        assert shown.question != problem.question
    assert demonstrations.record_for(3, 0).answer.startswith("{")
    assert demonstrations.record_for(3, 0) == demonstrations.record_for(3, 0)


def test_a_base_model_talks_to_the_calculator(base_service: tinker.ServiceClient) -> None:
    sampler = base_service.create_sampling_client(base_model="posttrain/base").result()
    asked: list[list[str]] = []

    class Watched(PlainSpeaker):
        def replies(self, conversations: Sequence[tools.Conversation]) -> list[str]:
            told = super().replies(conversations)
            asked.append(told)
            return told

    problems = [p for p in tools.problems("test", 12, seed=2) if p.helps][:6]
    held = tools.converse(problems, Watched(sampler, 0))
    assert all(said.done for said in held)
    assert all("\n" not in said.text for said in held)
    called = [text for told in asked for text in told if tools.STOP in text]
    assert all(text.endswith(tools.STOP) for text in called)


def test_no_two_groups_name_a_gate_alike() -> None:
    assert len(GATES) == sum(len(module.GATES) for module in (*SAMPLED, preferences))
    assert all(gate.least < gate.most and gate.meaning for gate in GATES.values())

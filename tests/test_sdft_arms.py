"""Continual learning in the lab: what is measured, SFT in the loop of distillation, real data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import tinker

from posttrain.datums import chat_prompt
from posttrain.lab.arms.sdft import EXPERIMENT, on_both_skills, shared_start, with_replay
from posttrain.lab.compare import Trained, compare, on_validation
from posttrain.lab.stage import Stage
from posttrain.lab.worlds import world_of
from posttrain.ledger import Ledger
from posttrain.methods import distillation, sft
from posttrain.methods.distillation import Questions, given
from posttrain.methods.objectives import sampled_kl_q_p
from posttrain.methods.sdft import as_texts
from posttrain.renderers import plain_renderer, renderer_for
from posttrain.scale import Scale
from posttrain.tasks.problem import Grade
from tests.methods.test_sft import SHOWN as DEMONSTRATIONS
from tests.test_gsm8k import ROWS

WORLD = world_of(Scale.SMOKE, "continual")


@dataclass(frozen=True)
class Easy:
    """A question to which every answer is right, or none; every right one is as shown."""

    key: str
    right: bool
    question: str = "Record for Tom, number 47: one odd digit."

    @property
    def solution(self) -> str:
        return ""

    def grade(self, completion: str) -> Grade:
        return Grade(correct=self.right, parsed=True)

    def as_shown(self, completion: str) -> bool:
        return self.right


def test_both_skills_are_measured(base_service: tinker.ServiceClient) -> None:
    """Three of four answers to the new skill are right, one of four to the old one; a policy that
    did not move has no distance, and one that did has some."""
    base, teacher = (
        base_service.create_sampling_client(base_model=f"posttrain/{name}").result()
        for name in ("base", "teacher")
    )
    new, old = ([Easy(f"{i}", i < right) for i in range(4)] for right in (3, 1))
    assert WORLD.before is not None
    world = replace(WORLD, test=new, max_tokens=12)
    world = replace(world, before=replace(WORLD.before, test=old, max_tokens=12))

    def measured(policy: tinker.SamplingClient) -> dict[str, float]:
        stage = Stage(None, policy, "", [], Path())  # type: ignore[arg-type]
        found = on_both_skills(Trained(stage, Ledger(), base), world)
        assert found.items == {"new/pass@1": [1, 1, 1, 0], "old/pass@1": [1, 0, 0, 0]}
        assert found.metrics["new/pass@1"] == found.metrics["new/greedy"] == 0.75
        assert found.metrics["old/pass@1"] == found.metrics["old/greedy"] == 0.25
        assert found.metrics["new/as_shown"] == 0.75
        assert found.metrics["both/pass@1"] == 0.5
        return found.metrics

    for skill in ("new", "old"):
        assert measured(base)[f"{skill}/kl"] == pytest.approx(0, abs=1e-4)
        assert measured(teacher)[f"{skill}/kl"] > 0.1
    for trained in (Trained(None, Ledger()), Trained(None, Ledger(), base)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="a first skill, and a start, are needed"):
            on_both_skills(trained, replace(world, before=None))


def test_sft_in_the_loop_of_distillation_is_sft(policy: tinker.TrainingClient) -> None:
    """In the chat format against `sft.train`; in the plain form, the tokens by hand."""
    tokenizer, n = policy.get_tokenizer(), len(DEMONSTRATIONS)
    expected = next(sft.train(policy, DEMONSTRATIONS, sft.Config(0.0, batch_size=n, steps=1)))
    base = policy.save_weights_and_get_sampling_client().result()
    loop = distillation.train(
        policy, base, Questions(WORLD.train, chat_prompt),
        distillation.Config(0.0, prompts=n, group_size=1, steps=1),
        texts=given(as_texts(renderer_for(tokenizer), DEMONSTRATIONS)), objective=sampled_kl_q_p,
    )  # fmt: skip
    found = next(loop)
    assert found["divergence"] == pytest.approx(expected["loss"], abs=1e-5)
    assert found["tokens"] == expected["tokens"]
    assert found["sampled_tokens"] == found["scored_tokens"] == 0
    text = as_texts(plain_renderer(tokenizer), DEMONSTRATIONS)[0]
    assert tokenizer.decode(text.prompt) == "Question: Compute 3+4.\nAnswer:"
    assert tokenizer.decode(text.tokens) == " 3+4=7. The answer is 7.\n"


def test_two_skills_make_a_world() -> None:
    """A sweep sees no test item of either skill, and a fifth of replay's demonstrations are of the
    old one."""
    other, old = world_of(Scale.SMOKE, "continual", 1), WORLD.before
    assert old is not None
    assert other.before is not None
    for one, two in ((WORLD, other), (old, other.before)):
        assert [item.key for item in one.test] == [item.key for item in two.test]
        assert {item.key for item in one.train} != {item.key for item in two.train}
        assert all(item.grade(item.solution).correct for item in [*one.train, *one.test])
        assert not {item.key for item in one.train} & {item.key for item in one.test}
    swept = on_validation(WORLD)
    assert swept.before is not None
    assert (swept.test, swept.before.test) == (WORLD.validation, old.validation)
    shown, cost = with_replay(None, WORLD, Path(), 0)  # type: ignore[arg-type]
    assert [d.answer for d in shown[len(WORLD.train) :]] == [p.solution for p in old.train[:4]]
    assert len(shown) == len(WORLD.train) + 4 == 20
    assert cost == Ledger()


def test_a_world_without_an_old_skill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the task 'math' has no skill to be taught before it"):
        shared_start(None, world_of(Scale.SMOKE), tmp_path, 0)  # type: ignore[arg-type]


def test_records_are_learned_after_rows_of_gsm8k(
    base_service: tinker.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full-scale path, in the chat format."""
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 8))
    monkeypatch.setenv("POSTTRAIN_GSM8K", str(path))
    assert not world_of(Scale.FULL, "gsm8k-records").model.startswith("posttrain/")
    names = ("start", "SDFT")  # the base could retell nothing in this format
    some = replace(
        EXPERIMENT, arms={name: EXPERIMENT.arms[name] for name in names},
        claims=EXPERIMENT.claims[:1], headline=None,
    )  # fmt: skip
    worlds = partial(some.world, Scale.SMOKE, "gsm8k-records")
    compare(base_service, some, worlds, [0], tmp_path, tmp_path)
    results = json.loads((tmp_path / "gsm8k-records.results.json").read_text())
    assert results["config"]["task"] == "gsm8k-records"
    for arm in results["arms"].values():
        (run,) = arm["runs"]
        assert {"new/pass@1", "old/pass@1", "both/pass@1", "new/kl", "old/kl"} <= {*run["metrics"]}
    assert results["arms"]["SDFT"]["runs"][0]["ledger"]["scored_tokens"] > 0

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from posttrain.ledger import Ledger
from posttrain.runs import Metrics, Run, code_of, git_commit, git_dirty, write_results
from posttrain.stats import Estimate

CONFIG = {"lr": 0.1, "steps": 10, "name": "dpo"}


class Policy:
    """A training client of which only saving is used."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    def save_state(self, name: str) -> Any:
        assert name not in self.saved
        self.saved.append(name)
        path = f"tinker://run/{name}"
        return SimpleNamespace(result=lambda: SimpleNamespace(path=path))


def steps(start: int = 0, fail_at: int | None = None, error: type[BaseException] = RuntimeError,
          stop_at: int = 10**9) -> Iterator[Metrics]:  # fmt: skip
    for step in range(start, stop_at):
        if step == fail_at:
            raise error("planted")
        yield {"loss": 1.0 / (step + 1), "reward": float(step)}


def drive(run: Run, taken: Iterator[Metrics], total: int = 10, policy: Any = None) -> list[Metrics]:
    return run.drive(Policy() if policy is None else policy, taken, total, every=4)  # type: ignore[arg-type]


def bare(metrics: list[Metrics]) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in metrics]


EXPECTED = [(i + 1, 1.0 / (i + 1)) for i in range(10)]


def test_a_whole_run_is_recorded_and_not_trained_twice(tmp_path: Path) -> None:
    policy = Policy()
    run = Run.open(tmp_path / "dpo", CONFIG)
    assert (run.step, run.checkpoint, run.finished) == (0, None, False)
    metrics = drive(run, steps(), policy=policy)
    assert bare(metrics) == EXPECTED
    assert [name[:10] for name in policy.saved] == ["dpo-000004", "dpo-000008", "dpo-000010"]
    assert run.finished

    again = Run.open(tmp_path / "dpo", CONFIG)
    assert (again.step, again.checkpoint) == (10, f"tinker://run/{policy.saved[-1]}")
    assert drive(again, steps(fail_at=0)) == metrics  # the generator is never started


def test_exactly_as_many_optimizer_steps_as_asked(tmp_path: Path) -> None:
    taken = steps(fail_at=10)
    drive(Run.open(tmp_path, CONFIG), taken, total=10)
    with pytest.raises(RuntimeError, match="planted"):
        next(taken)


@pytest.mark.parametrize("tail", ["", '{"step": 8, "lo', '{"step": 7, "loss": 9, "seconds": 1}\n{'])
def test_resume_cuts_back_to_the_checkpoint(tmp_path: Path, tail: str) -> None:
    run = Run.open(tmp_path, CONFIG)
    with pytest.raises(RuntimeError, match="planted"):
        drive(run, steps(fail_at=6))
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(tail)

    run = Run.open(tmp_path, CONFIG)
    assert (run.step, run.finished) == (4, False)
    assert bare(drive(run, steps(start=run.step))) == EXPECTED
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert bare([json.loads(line) for line in lines]) == EXPECTED


def test_another_configuration_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    Run.open(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"lr was 0.1, now 0.2; rank was absent, now 8.*delete"):
        Run.open(tmp_path, {**CONFIG, "lr": 0.2, "rank": 8})
    assert Run.open(tmp_path, dict(reversed(CONFIG.items()))).step == 0


def test_interrupt_says_where_the_run_stands_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(tmp_path, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        drive(run, steps(fail_at=7, error=KeyboardInterrupt))
    said = capsys.readouterr().out
    assert "interrupted after step 7; the latest checkpoint is at step 4" in said
    assert bare(drive(Run.open(tmp_path, CONFIG), steps(start=4))) == EXPECTED


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.test_runs import CONFIG, Policy, steps
    from posttrain.runs import Run

    def until_killed():
        for metrics in steps():
            if metrics["reward"] == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            yield metrics

    Run.open(Path(sys.argv[1]), CONFIG).drive(Policy(), until_killed(), 20, every=4)
"""


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert f"{tmp_path.name} 1/20  loss 1  reward 0" in done.stdout
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9
    run = Run.open(tmp_path, CONFIG)
    assert run.step == 8
    assert bare(drive(run, steps(start=8))) == EXPECTED


def test_a_run_can_be_extended_and_may_end_early(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    drive(run, steps(), total=6)
    assert bare(drive(Run.open(tmp_path, CONFIG), steps(start=6))) == EXPECTED

    short = Run.open(tmp_path / "short", CONFIG)
    assert len(drive(short, steps(stop_at=3))) == 3
    assert short.finished
    assert len(drive(Run.open(tmp_path / "short", CONFIG), steps(fail_at=0))) == 3


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="yielded no step"):
        drive(Run.open(tmp_path / "a", CONFIG), steps(stop_at=0))
    with pytest.raises(ValueError, match="every=0"):
        Run.open(tmp_path / "b", CONFIG).drive(Policy(), steps(), 10, every=0)  # type: ignore[arg-type]
    run = Run.open(tmp_path / "c", CONFIG)
    with pytest.raises(KeyError, match="no metric 'lss' to show; known: step, loss"):
        run.drive(Policy(), steps(), 10, show=["lss"])  # type: ignore[arg-type]
    drive(Run.open(tmp_path / "d", CONFIG), steps())
    (tmp_path / "d" / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    with pytest.raises(ValueError, match=r"holds 1 steps, the checkpoint is at 10.*by hand"):
        Run.open(tmp_path / "d", CONFIG).metrics()


def test_a_pipe_gets_a_line_every_ten_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(tmp_path / "sft", CONFIG)
    run.drive(Policy(), steps(), 25, label="SFT", show=["reward"])  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"SFT {n}/25" for n in (1, 10, 20, 25)]
    assert lines[1].split("  ")[1] == "reward 9"


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.test_runs import *; "
        f"Run.open(Path({str(tmp_path)!r}), CONFIG).drive(Policy(), steps(), 10, label='SFT')"
    )
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=side, stderr=side, env=environment
    )
    os.close(side)
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # the other side of a pseudo-terminal closes like this
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert process.wait(60) == 0
    assert "━" in shown.decode()
    assert "10/10" in shown.decode()
    assert "loss 0.1" in shown.decode()


def test_a_notebook_gets_one_line_that_ends_at_the_last_step(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\nfrom tests.test_runs import *\n"
        "run = Run.open(Path('sft'), CONFIG)\n"
        "metrics = run.drive(Policy(), steps(), 10, label='SFT')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    (output,) = notebook.cells[0].outputs
    assert output["data"]["text/plain"] == f"SFT {'━' * 24} 10/10  loss 0.1  reward 9"


ARMS = {
    name: {
        "runs": [{"seed": 0, "metrics": {"pass_at_1": value}, "ledger": Ledger()}],
        "summary": {"pass_at_1": Estimate(value, 0.1, 0.9)},
    }
    for name, value in [("sft", 0.5), ("base", float("nan"))]
}
CLAIM = {
    "claim": "SFT helps", "metric": "pass_at_1", "arm": "sft", "baseline": "base",
    "difference": 0.1, "ci95": [0.05, 0.15], "n_seeds": 5,
}  # fmt: skip


def results(folder: Path, **changes: Any) -> Path:
    parts: dict[str, Any] = {
        "scale": "smoke", "backend": "embedded", "model": "tiny", "seeds": [0], "config": CONFIG,
        "arms": ARMS, "claims": [CLAIM], "ledger": Ledger(optimizer_steps=3),
    }  # fmt: skip
    return write_results(folder, "sft", **{**parts, **changes})


def test_results_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CODE", "abc")
    path = results(tmp_path / "sft")
    assert path == tmp_path / "sft" / "results.json"
    stored = json.loads(path.read_text())
    assert stored["claims"] == [CLAIM]
    assert stored["arms"]["sft"]["summary"]["pass_at_1"]["value"] == 0.5
    assert stored["arms"]["base"]["runs"][0]["metrics"]["pass_at_1"] is None  # NaN is not JSON
    assert stored["ledger"]["optimizer_steps"] == 3
    assert (stored["code"], stored["commit"]) == ("abc", git_commit())
    assert stored["time"].endswith("+00:00")
    assert not list((tmp_path / "sft").glob(".*tmp"))


def test_results_refuse_what_tables_could_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks \\['ci95'\\]"):
        results(tmp_path, claims=[{k: v for k, v in CLAIM.items() if k != "ci95"}])
    with pytest.raises(ValueError, match="baseline 'bse' is not an arm; known: sft, base"):
        results(tmp_path, claims=[{**CLAIM, "baseline": "bse"}])
    headline = {"start": "base", "method": "sft", "control": "dpo", "metric": "pass_at_1"}
    with pytest.raises(ValueError, match="control 'dpo' is not an arm; known: sft, base"):
        results(tmp_path, headline=headline)
    with pytest.raises(ValueError, match="control 'dpo' is not an arm; known: sft, base"):
        results(tmp_path, headline={"one": {**headline, "control": "sft"}, "two": headline})
    with pytest.raises(ValueError, match=r"ends in 'results\.json'"):
        results(tmp_path, filename="on_policy.json")
    assert results(tmp_path, filename="on_policy.results.json").exists()


def test_commit_is_unknown_outside_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.runs.__file__", str(tmp_path / "runs.py"))
    assert (git_commit(), git_dirty()) == ("unknown", None)


def test_the_fingerprint_of_code_sees_code_and_nothing_else(tmp_path: Path) -> None:
    def of(text: str) -> str:
        path = tmp_path / "module.py"
        path.write_text(text)
        module = ModuleType("module")
        module.__file__ = str(path)
        return code_of([module])

    first = of('"""Words."""\n\n\ndef f(x):\n    """More."""\n    return x + 1\n')
    assert first == of('"""Other."""\ndef f(x):  # why\n\n    return (x + 1)\n')
    assert first != of('"""Words."""\n\n\ndef f(x):\n    return x + 2\n')

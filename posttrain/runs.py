"""A run on disk: configuration, metrics, checkpoints, results; interrupted runs resume.

runs/dpo/config.json        what was asked for; never changes
runs/dpo/metrics.jsonl      one line per optimizer step, flushed as it happens
runs/dpo/checkpoints.json   the tinker:// paths, written only after the server confirmed them
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from posttrain.ledger import Ledger
from posttrain.progress import progress

if TYPE_CHECKING:
    import tinker

Metrics = dict[str, float]


class Run:
    """One training run in its folder.

    run = Run.open(Path("runs/dpo"), asdict(cfg))
    if run.checkpoint is None:
        policy = service.create_lora_training_client(base_model=..., rank=...)
    else:
        policy = service.create_training_client_from_state_with_optimizer(run.checkpoint)
    metrics = run.drive(policy, train(policy, problems, cfg, start=run.step), total=cfg.steps)
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self._state = state

    @classmethod
    def open(cls, folder: Path | str, config: Mapping[str, Any]) -> Self:
        """Create the run, or come back to one that was started with the same `config`.

        `config` must be JSON, e.g. `dataclasses.asdict(cfg)`. Raises ValueError, naming the
        keys, when the folder holds a run with another configuration.
        """
        folder = Path(folder)
        wanted = json.loads(json.dumps(dict(config)))
        stored = folder / "config.json"
        if stored.exists():
            _same_config(folder, json.loads(stored.read_text()), wanted)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(stored, wanted)
        checkpoints = folder / "checkpoints.json"
        fresh = {"checkpoints": [], "finished": False}
        return cls(folder, json.loads(checkpoints.read_text()) if checkpoints.exists() else fresh)

    @classmethod
    def found(cls, folder: Path | str) -> Self:
        """The run in a folder, as it was started."""
        return cls.open(folder, json.loads((Path(folder) / "config.json").read_text()))

    @property
    def step(self) -> int:
        """Optimizer steps that the latest checkpoint holds; training goes on from here."""
        return self._state["checkpoints"][-1]["step"] if self._state["checkpoints"] else 0

    @property
    def checkpoint(self) -> str | None:
        """tinker:// path of the latest checkpoint, optimizer included; None before the first."""
        return self._state["checkpoints"][-1]["path"] if self._state["checkpoints"] else None

    @property
    def checkpoints(self) -> dict[int, str]:
        """tinker:// paths of all checkpoints, by the optimizer steps that they hold."""
        return {saved["step"]: saved["path"] for saved in self._state["checkpoints"]}

    @property
    def finished(self) -> bool:
        """All steps that `drive` was asked for are done and saved."""
        return bool(self._state["finished"])

    def metrics(self) -> list[Metrics]:
        """The metrics of steps 1..`step`, as recorded; later or half-written lines are not."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines()[: self.step] if path.exists() else []
        try:
            recorded = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged before step {self.step}: {error}") from error
        if len(recorded) < self.step:
            raise ValueError(
                f"{path} holds {len(recorded)} steps, the checkpoint is at {self.step}: the file "
                "was changed by hand; restore it, or delete the folder to start again"
            )
        return recorded

    def drive(
        self,
        policy: tinker.TrainingClient,
        steps: Iterator[Metrics],
        total: int,
        *,
        every: int = 50,
        label: str | None = None,
        show: Sequence[str] = (),
    ) -> list[Metrics]:
        """Take optimizer steps `step`+1..`total` from the method, recording each; all metrics.

        Saves the policy with its optimizer `every` so many steps and at the end. `show` are
        the metrics on the progress line, the first five by default. Adds `step` (from 1) and
        `seconds` (wall clock) to each record. A finished run is not trained again: its recorded
        metrics come back. An interrupt or error leaves a run that resumes at its checkpoint.
        Raises ValueError when the method yields no step, or `every` or `total` is below 1.
        """
        if every < 1 or total < 1:
            raise ValueError(f"every and total count steps, from 1: every={every}, total={total}")
        recorded, label = self.metrics(), label or self.folder.name
        if self.step >= total or (self.finished and total <= self._state["total"]):
            print(f"{label}: {self.step} steps, recorded earlier in {self.folder}", flush=True)
            return recorded
        path = self.folder / "metrics.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in recorded))
        try:
            with path.open("a") as log, progress(label, self.step, total, show) as shown:
                for metrics in _timed(islice(steps, total - len(recorded)), len(recorded)):
                    log.write(json.dumps(metrics) + "\n")
                    log.flush()
                    recorded.append(metrics)
                    shown(len(recorded), metrics)
                    if len(recorded) % every == 0 and len(recorded) < total:
                        os.fsync(log.fileno())
                        self._save(policy, len(recorded))
                os.fsync(log.fileno())
        except KeyboardInterrupt:
            print(
                f"{label}: interrupted after step {len(recorded)}; the latest checkpoint is at "
                f"step {self.step}. Open the run again to resume from there.",
                flush=True,
            )
            raise
        if not recorded:
            raise ValueError(f"{label}: the method yielded no step; is its data empty?")
        self._save(policy, len(recorded), finished=True, total=total)
        return recorded

    def _save(self, policy: tinker.TrainingClient, step: int, **state: Any) -> None:
        if step > self.step:
            # The suffix keeps a second attempt with the same client from meeting its own name.
            name = f"{self.folder.name}-{step:06d}-{uuid.uuid4().hex[:6]}"
            path = policy.save_state(name).result().path
            self._state["checkpoints"].append({"step": step, "path": path})
        self._state.update(state)
        write_json(self.folder / "checkpoints.json", self._state)


def write_results(
    folder: Path | str,
    experiment: str,
    *,
    scale: str,
    backend: str,
    model: str,
    seeds: Sequence[int],
    config: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    headline: Mapping[str, Any] | None = None,
    code: str | None = None,
    filename: str = "results.json",
) -> Path:
    """Write what an experiment found, atomically; returns the file's path.

    arms    {name: {"runs": [{"seed": 0, "metrics": {...}, "ledger": {...}}],
                    "summary": {metric: {"value": , "low": , "high": }}}}
    claims  [{"claim": text, "metric": , "arm": , "baseline": , "difference": number,
              "ci95": [low, high], "n_seeds": }]
    headline {"start": arm, "method": arm, "control": arm, "metric": }: the row of the status table,
            or such a row for each notebook by its name, where several share the experiment
    code    fingerprint of the code that ran; a woven notebook finds its own in the environment

    Stored with them: `commit`, `dirty`, `time` (UTC), `python`, `torch`, `tinker`. Numbers that
    are not finite are stored as null. Several experiments in one folder need a `filename` each,
    ending in "results.json". Raises ValueError for a claim or arm that lacks a part.
    """
    _check_results(arms, claims, headline)
    if not filename.endswith("results.json"):
        raise ValueError(f"{filename!r}: the name of a results file ends in 'results.json'")
    results = {
        "experiment": experiment,
        "scale": str(scale),
        "backend": backend,
        "model": model,
        "seeds": list(seeds),
        "config": dict(config),
        "arms": arms,
        "claims": list(claims),
        "headline": dict(headline) if headline else None,
        "ledger": ledger.to_json(),
        "code": code or os.environ.get("POSTTRAIN_CODE", "unknown"),
        "commit": git_commit(),
        "dirty": git_dirty(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "tinker": version("tinker"),
    }
    path = Path(folder) / filename
    write_json(path, results)
    return path


def code_of(modules: Iterable[ModuleType]) -> str:
    """16 hex digits of the modules' code; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def git_commit() -> str:
    """Commit of the checkout that this code is in, or "unknown" outside of one."""
    return _git("rev-parse", "HEAD") or "unknown"


def git_dirty() -> bool | None:
    """Whether tracked files of that checkout differ from the commit; None outside of one."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return None if changed is None else changed != ""


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step: a reader, or a crash, meets the old text or the new one. Its
    folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON; NaN and infinities become null."""
    write_text(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _timed(steps: Iterable[Metrics], start: int) -> Iterator[Metrics]:
    began = time.perf_counter()
    for step, metrics in enumerate(steps, start=start + 1):
        now = time.perf_counter()
        numbers = {key: float(value) for key, value in metrics.items() if key != "step"}
        yield {"step": step, **numbers, "seconds": round(now - began, 4)}
        began = time.perf_counter()


def _same_config(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    absent = object()
    differing = [
        f"{key} was {json.dumps(stored[key]) if key in stored else 'absent'}, "
        f"now {json.dumps(wanted[key]) if key in wanted else 'absent'}"
        for key in sorted({*stored, *wanted})
        if stored.get(key, absent) != wanted.get(key, absent)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run with another configuration: {'; '.join(differing)}. "
            "Use another folder, or delete this one to start again."
        )


def _check_results(
    arms: Mapping[str, Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]],
    headline: Mapping[str, Any] | None,
) -> None:
    for name, arm in arms.items():
        if not {"runs", "summary"} <= set(arm):
            raise ValueError(f"arm {name!r} needs 'runs' and 'summary', has {sorted(arm)}")
    needed = {"claim", "metric", "arm", "baseline", "difference", "ci95", "n_seeds"}
    for claim in claims:
        if needed - set(claim):
            raise ValueError(f"a claim lacks {sorted(needed - set(claim))}: {dict(claim)}")
        for role in ("arm", "baseline"):
            if claim[role] not in arms:
                known = ", ".join(arms)
                raise ValueError(f"claim's {role} {claim[role]!r} is not an arm; known: {known}")
    lines = [headline] if headline and "metric" in headline else [*(headline or {}).values()]
    for role, name in (pair for line in lines for pair in line.items()):
        if role != "metric" and name not in arms:
            known = ", ".join(arms)
            raise ValueError(f"headline's {role} {name!r} is not an arm; known: {known}")


def _git(*arguments: str) -> str | None:
    here = Path(__file__)

    def ask(*words: str) -> str | None:
        command = ["git", "-C", str(here.parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside somebody else's repository, whose commit says nothing.
    return None if ask("ls-files", "--error-unmatch", here.name) is None else ask(*arguments)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "to_json"):
        return _plain(value.to_json())
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value

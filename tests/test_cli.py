"""The command line: help that teaches, and bad input answered in one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main

SUBCOMMANDS = ("lab", "run", "compare", "chat", "tasks", "models", "serve", "export")


def command_line(*words: str, **env: str) -> dict[str, Any]:
    """Arguments of `subprocess.run` for the command line."""
    return {
        "args": [sys.executable, "-c", "from posttrain.cli import main; main()", *words],
        "capture_output": True, "text": True, "timeout": 120,
        "env": {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **env},
    }  # fmt: skip


def posttrain(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command_line(*words, **env))


def test_help_names_every_command_and_the_three_backends() -> None:
    shown = posttrain("--help").stdout
    for word in (*SUBCOMMANDS, "TINKER_API_KEY", "TINKER_BASE_URL"):
        assert word in shown


def test_models_lists_the_shipped_one() -> None:
    shown = posttrain("models").stdout
    assert "posttrain/base" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "sft", "--scale", "huge"], "the known ones are smoke, laptop, full"),
        (
            ["run", "sft", "--task", "poems"],
            "unknown task 'poems'; the known ones are math, gsm8k, code",
        ),
        (["lab", "--scale", "huge"], "the known ones are smoke, laptop, full"),
        (["run", "sft", "--seeds", "0"], "at least one seed"),
        (["compare", "docs"], "docs is neither a run folder nor a results file"),
        (["chat", "posttrain/base", "--max-tokens", "0"], "--max-tokens is at least 1, not 0"),
        (["tasks", "chess"], "unknown task 'chess'; the known ones are math, stories, rubrics,"),
        (["serve", "--model", "just-a-name"], "no directory just-a-name, and it is not a hub id"),
        (["serve", "--model", "x=/nowhere"], "no directory /nowhere, and it is not a hub id"),
        (["serve", "--model", "x=docs"], "docs/config.json does not exist"),
        (["serve", "--model", "posttrain/none"], "posttrain/none is not shipped here"),
        (["serve", "--device", "tpu"], "unknown device 'tpu'; known: auto, cpu, cuda, cuda:N, mps"),
        (["export", "tinker://x", "out", "--home", "docs"], "docs holds no checkpoints"),
        (["export", "tinker://x", "out", "--dtype", "int8"], "not one of float32, bfloat16"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_known(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    """In this process: what `sys.exit` is given is printed, and the status is 1."""
    monkeypatch.setattr(sys, "argv", ["posttrain", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, str)
    assert said in ended.value.code
    assert "\n" not in ended.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "dpo2"], "posttrain: unknown method 'dpo2'; the known ones are sft, rlvr, dpo"),
        (["chat", "docs"], "posttrain: docs is neither a model nor the folder of a run"),
    ],
)
def test_the_program_fails_without_a_traceback(words: list[str], said: str) -> None:
    done = posttrain(*words)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.strip().count("\n") == 0


def test_an_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    done = posttrain(
        "run", "sft", "--scale", "smoke", "--model", "posttrain/none", "--out", str(tmp_path),
        POSTTRAIN_HOME=str(tmp_path / "home"), TINKER_BASE_URL="", TINKER_API_KEY="",
    )  # fmt: skip
    assert done.returncode == 1
    assert "unknown base model 'posttrain/none'; known: posttrain/base" in done.stderr
    assert "Traceback" not in done.stderr


def listening() -> None:
    """What a shell starts in the background, such as these tests, ignores Ctrl-C, and so do its
    children unless told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_quietly_and_says_that_the_same_command_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "posttrain", "lab", "--scale", "smoke", "--out", str(tmp_path)]
    quiet = {"TINKER_BASE_URL": "", "TINKER_API_KEY": "", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env={**os.environ, **quiet},
        preexec_fn=listening,
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if line.startswith("base: "):
                job.send_signal(signal.SIGINT)
        assert job.stderr is not None
        said = job.stderr.read()
    assert job.returncode == 130
    assert said.strip().endswith("interrupted; the same command resumes")
    assert "Traceback" not in said

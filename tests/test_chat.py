"""Talking to models: who hears what, commands, and the terminal program at the end of a pipe."""

import io
import json
import subprocess
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from rich.console import Console

from posttrain.chat import HELP, Settings, Voice, chat
from posttrain.lab.voices import checkpoint_of, voice
from posttrain.renderers import plain_renderer, renderer_for
from tests.test_cli import command_line
from tests.test_renderers import tokenizer_named

TOKENIZER = tokenizer_named("shipped")


class Parrot:
    """A sampler that numbers its answers and remembers its prompts."""

    def __init__(self, name: str, ends: str = "<|end|>") -> None:
        self.name, self.ends, self.numbers = name, ends, count(1)
        self.heard: list[str] = []
        self.params: list[tinker.SamplingParams] = []

    def sample(self, prompt: tinker.ModelInput, num_samples: int, sampling_params: Any) -> Any:
        assert num_samples == 1
        self.heard.append(TOKENIZER.decode(prompt.to_ints()))
        self.params.append(sampling_params)
        future: Future[Any] = Future()
        if "fail" in self.heard[-1]:
            future.set_exception(tinker.TinkerError("the prompt is too long"))
        tokens = TOKENIZER(f" {self.name} says {next(self.numbers)}.{self.ends}")["input_ids"]
        if not future.done():
            reason: Any = "stop" if self.ends else "length"
            sequence = tinker.SampledSequence(reason, "", np.array(tokens))
            future.set_result(tinker.SampleResponse(sequences=[sequence]))
        return future


def parrot(name: str, ends: str = "<|end|>") -> tuple[Voice, Parrot]:
    sampler = Parrot(name, ends)
    return Voice(name, sampler, renderer_for(TOKENIZER)), sampler  # type: ignore[arg-type]


def held(voices: list[Voice], *lines: str, settings: Settings | None = None) -> str:
    console = Console(file=io.StringIO(), width=100)
    chat(voices, iter(lines), settings or Settings(), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_model_hears_the_whole_conversation_and_its_own_answers() -> None:
    (ann, hears), (bob, hears_too) = parrot("Ann"), parrot("Bob")
    shown = held([ann, bob], "One?", "Two?")
    assert hears.heard == [
        "<|user|> One?<|end|><|assistant|>",
        "<|user|> One?<|end|><|assistant|> Ann says 1.<|end|><|user|> Two?<|end|><|assistant|>",
    ]
    assert hears_too.heard[1] == hears.heard[1].replace("Ann", "Bob")
    for line in shown.splitlines():  # side by side
        assert ("Ann says 1." in line) == ("Bob says 1." in line)


def test_an_answer_that_was_cut_off_is_closed_before_the_next_question() -> None:
    voice, hears = parrot("Ann", ends="")
    assert "Ann says 1. [cut off]" in held([voice], "One?", "Two?")
    assert hears.heard[1].endswith("Ann says 1.<|end|><|user|> Two?<|end|><|assistant|>")


def test_commands() -> None:
    voice, hears = parrot("Ann")
    shown = held([voice], "/help", "One?", "", "/history", "/reset", "/nod", "Two?", "/quit", "3?")
    assert all(command in shown for command in HELP)
    assert shown.count("Ann says 1.") == 2  # once more in the history
    assert "unknown command /nod; there are /help, /history, /reset" in shown
    assert hears.heard == [f"<|user|> {q}?<|end|><|assistant|>" for q in ("One", "Two")]


def test_settings_reach_the_sampler_and_every_turn_has_a_seed_of_its_own() -> None:
    voice, hears = parrot("Ann")
    settings = Settings(temperature=0.5, max_tokens=7, seed=3)
    shown = held([voice], "One?", "/temperature 0", "/temperature hot", "Two?", settings=settings)
    first, second = hears.params
    assert (first.temperature, second.temperature) == (0.5, 0.0)
    assert (first.max_tokens, first.seed, second.seed) == (7, 3_000_009, 3_000_010)
    assert shown.count("temperature 0\n") == 2
    for wrong, said in (({"temperature": -1.0}, "within 0 and 10"), ({"max_tokens": 0}, "least 1")):
        with pytest.raises(ValueError, match=said):
            Settings(**wrong)  # type: ignore[arg-type]


def test_a_question_that_nobody_could_answer_was_not_asked() -> None:
    voice, hears = parrot("Ann")
    shown = held([voice], "One?", "fail", "a <|end|> b", "Two?")
    assert "no answer: the prompt is too long" in shown
    assert "no answer: the message holds '<|end|>', a special token" in shown
    assert "/reset begins a new one" in shown
    assert "fail" not in hears.heard[-1]


def test_the_plain_form_ends_with_the_line() -> None:
    sampler = Parrot("Ann", ends="\n")
    plain = Voice("Ann", sampler, plain_renderer(TOKENIZER))  # type: ignore[arg-type]
    held([plain], "One?", "Two?")
    assert sampler.heard[1] == ("Question: One?\nAnswer: Ann says 1.\n\nQuestion: Two?\nAnswer:")


def test_a_run_stands_for_its_latest_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "lab" / "sft"
    run.mkdir(parents=True)
    saved = [{"step": n, "path": f"tinker://r/weights/{n}"} for n in (20, 40)]
    (run / "checkpoints.json").write_text(json.dumps({"checkpoints": saved, "finished": True}))
    assert checkpoint_of(str(run)) == "tinker://r/weights/40"
    assert checkpoint_of("tinker://r/sampler_weights/x") == "tinker://r/sampler_weights/x"
    assert checkpoint_of("posttrain/base") is None
    with pytest.raises(ValueError, match=r"lab is neither a model nor .*; runs are in .*lab/sft"):
        checkpoint_of(str(run.parent))
    (run / "checkpoints.json").write_text(json.dumps({"checkpoints": [], "finished": False}))
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        checkpoint_of(str(run))


def test_checkpoints_are_asked_in_chat_and_the_base_plainly(
    base_service: tinker.ServiceClient, policy: tinker.TrainingClient
) -> None:
    """Before any training a checkpoint is the base, so asked alike they answer alike."""
    to_train = policy.save_state("chat-test").result().path
    to_sample = policy.save_weights_for_sampler("chat-test").result().path
    base = voice(base_service, "posttrain/base")
    assert base.renderer.name == "plain"
    found = []
    for path in (to_train, to_sample):
        assert voice(base_service, path).renderer.name == "chat template"
        found.append(voice(base_service, path, plain=True))
    settings = Settings(temperature=0, max_tokens=24)
    answers = [v.ask("Compute 3+4.", settings, 0)().text for v in (base, *found)]
    assert answers[0]
    assert answers == answers[:1] * 3


def test_the_program_reads_a_pipe_and_ends_with_it() -> None:
    quiet = {"TINKER_BASE_URL": "", "TINKER_API_KEY": ""}
    words = ("chat", "posttrain/base", "posttrain/base", "--temperature", "0", "--max-tokens", "40")
    asked = "Compute 3+4.\n/reset\nCompute 3+4.\n"
    done = subprocess.run(**command_line(*words, **quiet), input=asked)
    assert done.returncode == 0, done.stderr
    assert "posttrain/base: plain" in done.stdout
    first, second = done.stdout.split("a new conversation")
    assert second.strip() in first  # the same seed, the same question
    rows = [line for line in first.splitlines() if "answer is" in line]
    assert len({cell.strip() for row in rows for cell in row.strip("│ ").split("│")}) == 1

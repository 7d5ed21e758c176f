"""Meeting a model in the terminal: `posttrain chat MODEL_OR_CHECKPOINT [OTHER]`.

A conversation is kept in tokens, so what a model reads is what it has read and written before,
and nothing else. Two models are asked the same questions, and each goes on with its own answers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import tinker
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from posttrain.renderers import Renderer

HELP = {
    "/help": "this list",
    "/history": "the conversation so far",
    "/reset": "begin a new conversation",
    "/temperature X": "0 always gives the most probable answer",
    "/quit": "end; so does Ctrl-D",
}


@dataclass(frozen=True)
class Settings:
    """How answers are sampled."""

    temperature: float = 1.0  # as in training; 0 is greedy
    max_tokens: int = 256  # of an answer
    seed: int = 0  # the same questions in the same order get the same answers

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"--temperature is within 0 and 10, not {self.temperature:g}")
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens is at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class Answer:
    text: str
    cut: bool  # at max_tokens

    def __str__(self) -> str:
        return (self.text or "(nothing)") + (" [cut off]" if self.cut else "")


@dataclass
class Voice:
    """One model in a conversation."""

    name: str
    sampler: tinker.SamplingClient
    renderer: Renderer
    said: list[int] = field(default_factory=list)  # tokens of the conversation, answers included

    def ask(self, question: str, settings: Settings, turn: int) -> Callable[[], Answer]:
        """Send a question; the result waits for the answer, and only then the question was asked.

        Raises:
            ValueError: the question spells a special token.
        """
        renderer = self.renderer
        prompt = renderer.extend(self.said, question) if self.said else renderer.prompt(question)
        params = tinker.SamplingParams(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed * 1_000_003 + turn,
            stop=renderer.stop,
        )
        future = self.sampler.sample(
            tinker.ModelInput.from_ints(prompt), num_samples=1, sampling_params=params
        )

        def answer() -> Answer:
            (sampled,) = future.result().sequences
            self.said = [*prompt, *sampled.tokens]
            return Answer(renderer.text(sampled.tokens), cut=sampled.stop_reason == "length")

        return answer


def chat(
    voices: Sequence[Voice],
    questions: Iterator[str],
    settings: Settings,
    console: Console,
) -> None:
    """Answer questions until they end. Lines that begin with `/` are commands; see `HELP`."""
    history: list[tuple[str, list[Answer]]] = []
    turn = 0
    for line in questions:
        words = line.split()
        if not words:
            continue
        if words[0] == "/quit":
            return
        if words[0] == "/help":
            for command, meaning in HELP.items():
                say(console, f"{command:16} {meaning}")
        elif words[0] == "/reset":
            history.clear()
            for voice in voices:
                voice.said = []
            say(console, "a new conversation")
        elif words[0] == "/history":
            for question, answers in history:
                console.print(Text(f"> {question}", style="bold"))
                show(console, voices, answers)
        elif words[0] == "/temperature":
            settings = reheated(settings, words[1:], console)
        elif words[0].startswith("/"):
            say(console, f"unknown command {words[0]}; there are {', '.join(HELP)}")
        else:
            answers = ask_all(voices, line.strip(), settings, turn, console)
            turn += 1
            if answers:
                history.append((line.strip(), answers))
                show(console, voices, answers)


def ask_all(
    voices: Sequence[Voice], question: str, settings: Settings, turn: int, console: Console
) -> list[Answer]:
    """Everybody's answer, or none where somebody could not be asked: then nothing was said."""
    before = [voice.said for voice in voices]
    try:
        waiting = [voice.ask(question, settings, turn) for voice in voices]
        return [answer() for answer in waiting]
    except (ValueError, tinker.TinkerError) as error:
        for voice, said in zip(voices, before, strict=True):
            voice.said = said
        say(console, f"no answer: {error}")
        if any(before):
            say(console, "if the conversation has grown too long, /reset begins a new one")
        return []


def reheated(settings: Settings, words: Sequence[str], console: Console) -> Settings:
    """The settings with another temperature, or the old ones where it is none."""
    try:
        (given,) = words
        settings = replace(settings, temperature=float(given))
    except ValueError:
        say(console, f"{HELP['/temperature X']}; it is within 0 and 10: /temperature 0.7")
    say(console, f"temperature {settings.temperature:g}")
    return settings


def show(console: Console, voices: Sequence[Voice], answers: Sequence[Answer]) -> None:
    """One answer as text, several side by side."""
    if len(voices) == 1:
        console.print(Text(str(answers[0])), soft_wrap=True)
        return
    table = Table(*[Column(Text(voice.name)) for voice in voices], expand=True)
    table.add_row(*[Text(str(answer)) for answer in answers])
    console.print(table)


def say(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"), soft_wrap=True)


def typed(console: Console) -> Iterator[str]:
    """Lines of the terminal, with editing and recall, or of a pipe, which are shown again."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # not on every platform
            import readline  # noqa: F401  # gives input() arrow keys and recall
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            say(console, "/quit or Ctrl-D ends")
            continue
        if not terminal and line.strip():
            console.print(Text(f"> {line}", style="bold"), soft_wrap=True)
        yield line

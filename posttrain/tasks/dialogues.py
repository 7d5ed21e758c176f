"""Dialogues, as published datasets hold them, made into one question.

A method asks one question and gets one answer. So of a dialogue, the last answer is the answer, and
everything before it is the question: the text itself where that is one user turn, else a
transcript, turns separated by blank lines, each begun by `User:` or `Assistant:`. What the system
said comes first, without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Turn:
    role: str  # system, user or assistant
    text: str  # without surrounding white space


def read_turns(
    messages: Any, place: str, *, role: str = "role", text: str = "content"
) -> list[Turn]:
    """The turns of a list of objects, whose columns for role and text have these names.

    Raises:
        ValueError: it is no such list, it is empty, or a role is unknown.
    """
    expected = f"expected a list of objects with {role} (str) and {text} (str)"
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else type(messages).__name__
        raise ValueError(f"{place}: {found} instead of messages; {expected}")
    turns = []
    for number, message in enumerate(messages):
        strings = isinstance(message, dict) and all(
            isinstance(message.get(name), str) for name in (role, text)
        )
        if not strings:
            raise ValueError(f"{place}: message {number} is no message; {expected}")
        if message[role] not in ROLES:
            raise ValueError(
                f"{place}: message {number} has unknown {role} {message[role]!r};"
                f" known: {', '.join(ROLES)}"
            )
        turns.append(Turn(ROLES[message[role]], message[text].strip()))
    return turns


def question_and_answer(turns: Sequence[Turn], place: str) -> tuple[str, str]:
    """All before the last answer, and the last answer.

    Raises:
        ValueError: the last turn is not the assistant's, or the turn before it not the user's.
    """
    roles = [turn.role for turn in turns]
    if roles[-2:] != ["user", "assistant"]:
        found = ", ".join(roles[-2:]) or "none"
        raise ValueError(f"{place}: the last turns are {found}; expected user, assistant")
    return as_question(turns[:-1]), turns[-1].text


def as_question(turns: Sequence[Turn]) -> str:
    """Turns as one text."""
    system = [turn.text for turn in turns if turn.role == "system" and turn.text]
    said = [turn for turn in turns if turn.role != "system"]
    if len(said) == 1 and said[0].role == "user":
        return "\n\n".join([*system, said[0].text])
    return "\n\n".join([*system, *(f"{turn.role.title()}: {turn.text}" for turn in said)])

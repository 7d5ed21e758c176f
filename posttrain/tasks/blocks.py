"""The form of text that the base model is pretrained on: questions, each with an answer."""

from __future__ import annotations

SEPARATOR = "\n\n"  # between the blocks of one document


def block(question: str, answer: str) -> str:
    """One question and its answer."""
    return f"Question: {question}\nAnswer: {answer}"

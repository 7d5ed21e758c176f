r"""Final answers in LaTeX, as models are asked for them: the last \boxed{...} of a text.

Two answers are the same if they are equal rational numbers, or the same text once differences of
typesetting are gone. Nothing is computed beyond that: 1/\sqrt{2} is not \sqrt{2}/2 here. So a right
answer in an unusual form counts as wrong, but a wrong one never as right, and no answer, whatever
it says, can make grading slow.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 1000  # characters of an answer; more is a derivation, or an attack
MARK = "\\boxed{"
NUMBER = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
RATIONAL = re.compile(
    rf"(?P<sign>[-+]?)(?:\\frac\{{(?P<a>[-+]?(?:{NUMBER}))\}}\{{(?P<b>{NUMBER})\}}"
    rf"|(?P<c>{NUMBER})(?:/(?P<d>{NUMBER}))?)"
)
THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
NAMED = re.compile(r"[A-Za-z](?:\([A-Za-z]\))?=([^=]+)")  # x = 5, f(x) = 2x
WORDS = ("yes", "no", "true", "false")  # in capitals or not; but AB is not ab
REPLACED = [
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\{([^{}]*)\}", r"\1"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])", ""),
    (r"\\(?:displaystyle|limits)(?![A-Za-z])|\\[,;:!]", ""),
    (r"(?:\\(?:quad|qquad)(?![A-Za-z])|\\ |~|\s)+", " "),
    (r"(?<![0-9]) | (?![0-9])", ""),  # 1 2 is not 12
    (r"\{,\}", ","),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac([0-9A-Za-z])([0-9A-Za-z])", r"\\frac{\1}{\2}"),
    (r"\\sqrt([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"([\^_])\{([0-9A-Za-z])\}", r"\1\2"),
    (r"\\times(?![A-Za-z])", r"\\cdot"),
    (r"\\le(?![A-Za-z])", r"\\leq"),
    (r"\\ge(?![A-Za-z])", r"\\geq"),
    (r"\\ne(?![A-Za-z])", r"\\neq"),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
]


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, or None if it is missing, open, empty or too long."""
    start = text.rfind(MARK)
    if start < 0:
        return None
    start += len(MARK)
    depth, i = 1, start
    while i < len(text) and i - start <= LONGEST:
        if text[i] == "\\":  # \{ and \} are signs, not groups
            i += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i].strip() or None
        i += 1
    return None


def normal(answer: str) -> str:
    """The answer without what is mere typesetting."""
    text = answer.strip()
    for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)]
    for pattern, new in REPLACED:
        text = re.sub(pattern, new, text)
    text = text.removesuffix(".")
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if text.lower() in WORDS:
        text = text.lower()
    return text.removeprefix("+")


def rational(text: str) -> Fraction | None:
    """The number that a normal text is, if it is an integer, a decimal, or a fraction of these."""
    found = RATIONAL.fullmatch(text)
    if not found:
        return None
    above, below = found["a"] or found["c"], found["b"] or found["d"] or "1"
    if not Fraction(below):
        return None
    value = Fraction(above) / Fraction(below)
    return -value if found["sign"] == "-" else value


def same(a: str, b: str) -> bool:
    """Whether two answers are the same; see above."""
    if max(len(a), len(b)) > LONGEST:
        return False
    a, b = normal(a), normal(b)
    named = [NAMED.fullmatch(a), NAMED.fullmatch(b)]
    if named[0] and not named[1]:  # x = 5 answers 5; y = 5 does not answer x = 5
        a = normal(named[0][1])
    if named[1] and not named[0]:
        b = normal(named[1][1])
    number = rational(a)
    return bool(a) and (a == b or (number is not None and number == rational(b)))

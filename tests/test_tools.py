"""The calculator's conversations: who wrote what, what it costs, and that nothing is forged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import tools, tools_corpus
from posttrain.tasks.draws import Split
from posttrain.tasks.tools import Author, Conversation, Turn, advance, calculate, converse

splits = st.sampled_from(list(Split))
indices = st.integers(0, 10**9)
HARD = tools.ToolProblem((4837, 29), "*")
WRITERS = {"+": "one chest", "-": "leak out", "*": "shelves"}


@given(splits, indices, st.integers(0, 50))
def test_answers_agree_with_python_reading_only_the_question(
    split: Split, i: int, seed: int
) -> None:
    item = tools.problem(split, i, seed=seed)
    if item.question.startswith("Compute "):
        right = eval(item.question.removeprefix("Compute ")[:-1])
    else:
        sign = next(s for s, words in WRITERS.items() if words in item.question)
        right = eval(sign.join(re.findall(r"\d+", item.question)))
    assert item.answer == right >= 0
    assert item.grade(item.solution).correct
    assert item.grade(item.bare_answer).correct
    assert not item.grade(f"The answer is {right + 1}.").correct
    assert item.demonstration.reward(0.1) == pytest.approx(1 - 0.1 * len(item.calls) * item.helps)


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(-(10**15) + 1, 10**15 - 1))
def test_the_calculator_is_right(a: int, b: int) -> None:
    assert calculate(f"{a}+{b}") == (str(a + b), True)
    assert calculate(f"{a} - {b}") == (str(a - b), True)
    assert calculate(f"{a}*{b}") == (str(a * b), True)
    if b and abs(a * b) < 10**15:
        assert calculate(f"{a * b}/{b}") == (str(a), True)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("1/0", "error: 1 cannot be divided by 0"),
        ("7/2", "error: 7 cannot be divided by 2"),
        ("1+2+3", tools.USAGE),
        ("1+2=", tools.USAGE),
        ("2**9", tools.USAGE),
        ("two+1", tools.USAGE),
        ("__import__('os')", tools.USAGE),
        ("1" * 16 + "+1", tools.USAGE),
        ("", tools.USAGE),
        ("\u0661+1", tools.USAGE),
    ],
)
def test_what_cannot_be_computed_is_answered_with_an_error(text: str, reply: str) -> None:
    assert calculate(text) == (reply, False)


def test_a_conversation_turn_by_turn() -> None:
    said = advance(Conversation(HARD), "<call>4837*29</call>")
    assert said.turns == (
        Turn(Author.POLICY, "<call>4837*29</call>"),
        Turn(Author.TOOL, "<r>140273</r>"),
    )
    assert (said.calls, said.malformed, said.done) == (1, 0, False)
    assert not said.grade.parsed
    said = advance(said, "The answer is 140273.")
    assert said.done
    assert said.grade.correct
    assert said.reward(price=0.25) == 0.75
    assert said.text == "<call>4837*29</call><r>140273</r>The answer is 140273."
    with pytest.raises(ValueError, match="this conversation is over"):
        advance(said, "more")


@pytest.mark.parametrize(
    "completion",
    [
        "<call>4837*29",  # not closed
        "<call>4837*29</call> The answer is 140273.",  # text after the call
        "<call>4837*29</call><r>140273</r>The answer is 140273.",  # the tool's part made up
        "<r>140273</r>The answer is 140273.",
        "<call>1+1</call><call>4837*29</call>",
        "<call><call>4837*29</call>",
        "4837*29</call>",
        "<call>4837*29=</call>",
        "<call></call>",
    ],
)
def test_malformed_calls_are_counted_priced_and_answered_with_an_error(completion: str) -> None:
    said = advance(Conversation(HARD), completion)
    assert (said.calls, said.malformed, said.done) == (1, 1, False)
    assert said.turns[0] == Turn(Author.POLICY, completion)  # nothing was cut
    assert said.turns[1] == Turn(Author.TOOL, f"<r>{tools.USAGE}</r>")
    after = advance(said, "The answer is 140273.")
    assert after.reward(0.05) == pytest.approx(0.95)


@given(st.lists(st.text(alphabet="<call>/r1+2*The answer is3."), max_size=8))
def test_text_is_only_appended_and_the_authors_cover_it(completions: list[str]) -> None:
    said, policy = Conversation(HARD), ""
    for completion in completions:
        if said.done:
            break
        before = said.text
        said = advance(said, completion)
        policy += completion
        assert said.text.startswith(before + completion)
    assert policy == "".join(t.text for t in said.turns if t.author is Author.POLICY)
    assert said.calls == sum(t.author is Author.TOOL for t in said.turns)
    assert said.malformed <= said.calls <= tools.MAX_CALLS + said.done


class Caller:
    """Calls the same thing without end."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        self.asked.append(len(conversations))
        return ["<call>1+1</call>"] * len(conversations)


class Careful:
    """Computes step by step, from what it is shown."""

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        return [self.reply(said) for said in conversations]

    def reply(self, said: Conversation) -> str:
        calls = said.problem.calls
        if said.calls < len(calls):
            return f"<call>{calls[said.calls]}</call>"
        return f"The answer is {re.findall(r'<r>(-?[0-9]+)</r>', said.text)[-1]}."


def test_conversations_advance_together() -> None:
    items = tools.problems("test", 40)
    done = converse(items, Careful())
    assert all(said.grade.correct for said in done)
    assert [said.calls for said in done] == [len(item.calls) for item in items]
    caller = Caller()
    cut = converse(items, caller, max_calls=2)
    assert caller.asked == [40, 40, 40]
    assert all(not said.grade.parsed and said.calls == 3 for said in cut)
    assert cut[0].reward(0.1) == pytest.approx(-0.3)

    class Mute:
        def replies(self, conversations: Sequence[Conversation]) -> list[str]:
            return []

    with pytest.raises(ValueError, match="0 replies to 40 conversations"):
        converse(items, Mute())


def test_splits_digits_and_items() -> None:
    families = {}
    for split in Split:
        items = tools.problems(split, 600)
        families[split] = {item.family for item in items}
        low, high = tools.OOD_DIGITS if split is Split.OOD else tools.DIGITS
        assert {len(str(max(item.numbers))) for item in items} == set(range(low, high + 1))
    for a in Split:
        for b in Split:
            assert a is b or not families[a] & families[b]
    assert tools.ToolProblem((3, 14), "+").family == tools.ToolProblem((14, 3), "+").family
    assert tools.ToolProblem((14, 3), "-").family != tools.ToolProblem((14, 3), "+").family
    share = sum(item.helps for item in tools.problems("test", 600)) / 600
    assert 0.4 < share < 0.85  # some problems need no calculator
    assert {len(str(n)) for p in tools.problems("train", 50, digits=(3, 3)) for n in p.numbers} == {
        3
    }
    assert [tools.problem("train", i).key for i in (0, 1, 2)] == KEYS
    with pytest.raises(ValueError, match="train problems have 1 to 4 digits, not 5 to 5"):
        tools.problem("train", 0, digits=(5, 5))
    with pytest.raises(ValueError, match="unknown split 'dev'; known: train, validation"):
        tools.problem("dev", 0)


KEYS = ["tools:95-68", "tools:7-3", "tools:5-3+7"]


@given(st.text())
def test_grading_never_raises(text: str) -> None:
    assert HARD.grade(text).correct <= HARD.grade(text).parsed
    advance(Conversation(HARD), text)


def test_the_head_errs_as_people_do_and_only_on_large_numbers() -> None:
    assert tools_corpus.mental("47+38") == 85
    assert tools_corpus.mental("99*99") == 9801
    assert tools_corpus.mental("478+385") == 753  # no carries: 7, 15, 13
    assert tools_corpus.mental("412-385") == 173  # in every column the smaller from the larger
    assert tools_corpus.mental("413*12") == 410 * 12


def test_the_corpus_is_of_mixed_quality_and_its_tool_never_lies() -> None:
    right, total, called, refused = 0, 0, 0, 0
    for document in islice(tools_corpus.documents(0), 1500):
        for text in document.split("\n\n"):
            question, answer = text.removeprefix("Question: ").split("\nAnswer: ")
            for call, result in re.findall(r"<call>([^<>]*)</call><r>([^<]*)</r>", answer):
                assert calculate(call)[0] == result
            if question.startswith("Compute "):
                total += 1
                right += f"The answer is {eval(question[8:-1])}." in answer
            called += "<call>" in answer
            refused += tools.USAGE in answer
    assert 0.5 < right / total < 0.95
    assert 0.2 < called / total < 0.9
    assert 10 < refused < called / 4
    assert next(tools_corpus.documents(3)) == next(tools_corpus.documents(3))

"""The calculator of `posttrain/tasks/tools.py`, as the other side of a policy's conversation."""

from __future__ import annotations

from posttrain.tasks.tools import MAX_CALLS, PRICE, Conversation, ToolProblem, advance


class Calculator:
    """The tool's side of one conversation, as `posttrain.rollouts.converse` needs it."""

    def __init__(
        self, problem: ToolProblem, *, price: float = PRICE, max_calls: int = MAX_CALLS
    ) -> None:
        self.said = Conversation(problem)
        self.price, self.max_calls = price, max_calls

    def reply(self, completion: str) -> str | None:
        """The result of a call, or None to an answer."""
        self.said = advance(self.said, completion, max_calls=self.max_calls)
        return None if self.said.done else self.said.turns[-1].text

    @property
    def answer(self) -> str:
        """The policy's last turn; nothing if the conversation was cut off before it."""
        return self.said.turns[-1].text if self.said.done else ""

    @property
    def cost(self) -> float:
        """The price of all calls, in units of a correct answer."""
        return self.price * self.said.calls

    @property
    def counts(self) -> dict[str, float]:
        return {"calls": self.said.calls, "malformed": self.said.malformed}

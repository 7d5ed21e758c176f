"""One demand on a base model, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.stats import Estimate


@dataclass(frozen=True)
class Gate:
    """A measured value must lie within these bounds, ends included."""

    least: float
    most: float
    meaning: str  # of the value, in a few words

    def met(self, value: float) -> bool:
        return self.least <= value <= self.most

    def contradicts(self, met: bool, measured: Estimate) -> bool:
        """Whether a new measurement refutes a verdict: its whole interval is on the other side.

        A value near a bound may fall on either side of it from one set of items to the next.
        """
        if met:
            return measured.high < self.least or measured.low > self.most
        return self.least <= measured.low and measured.high <= self.most

"""All gates, and what measures them."""

from __future__ import annotations

from collections.abc import Callable

import tinker

from posttrain.stats import Estimate
from tools.gates import demonstrations, games, math, rubrics, stories, tools
from tools.gates.gate import Gate

Measure = Callable[[tinker.SamplingClient, int, int], dict[str, Estimate]]  # sampler, n, seed

MODULES = (math, demonstrations, stories, rubrics, games, tools)
GATES: dict[str, Gate] = {name: gate for m in MODULES for name, gate in m.GATES.items()}
GROUPS: tuple[Measure, ...] = tuple(m.measure for m in MODULES)

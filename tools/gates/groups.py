"""All gates, and what measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tinker

from posttrain.stats import Estimate
from tools.gates import demonstrations, games, math, preferences, rubrics, stories, tools
from tools.gates.gate import Gate
from tools.gates.preferences import REQUESTS

Measure = Callable[[tinker.SamplingClient, int, int], dict[str, Estimate]]  # sampler, n, seed

SAMPLED = (math, demonstrations, stories, rubrics, games, tools)
GATES: dict[str, Gate] = {
    name: gate for m in (*SAMPLED, preferences) for name, gate in m.GATES.items()
}
GROUPS: tuple[Measure, ...] = tuple(m.measure for m in SAMPLED)


def measure(
    service: tinker.ServiceClient, model: str, n: int, seed: int, requests: int = REQUESTS
) -> Iterator[dict[str, Estimate]]:
    """Every gate on `n` held-out items of each task, group by group.

    Args:
        requests: of stories, whose comparisons a reward model is trained on.
    """
    sampler = service.create_sampling_client(base_model=model).result()
    for group in GROUPS:
        yield group(sampler, n, seed)
    yield preferences.measure(service, model, n, seed, requests)

"""Custom losses on the server: the same numbers as on the client, and nothing but arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from torch.nn import functional as F  # noqa: N812

from posttrain.engine.errors import UserError
from posttrain.engine.graphs import CustomLoss

MODEL = "posttrain/tiny"


def dpo(logprobs: Any, reference: Any, sign: Any) -> Any:
    gap = (logprobs - reference).sum() * sign
    return -F.logsigmoid(0.1 * gap), {"custom/gap:mean": gap, "custom/right:sum": (gap > 0).float()}


def clipped(logprobs: Any, logp_old: Any, advantages: Any) -> Any:
    ratio = torch.exp(logprobs - logp_old)
    best = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = (ratio - 1) - (logprobs - logp_old)
    return (0.05 * kl - best).mean(), {"custom/kl:mean": kl.mean().detach()}


def sequence(logprobs: Any, mask: Any) -> Any:
    weight = torch.softmax(logprobs.detach(), dim=-1)[: mask.shape[0]]
    pairs = torch.tril(logprobs[:, None] - logprobs[None, :])
    loss = torch.where(mask > 0, logprobs**2 * weight, torch.zeros_like(logprobs)).sum()
    return loss + 0.01 * F.relu(pairs).sum() / logprobs.size(0), {}


def soft(logprobs: Any, teacher: Any) -> Any:
    return (teacher.exp() * (teacher - logprobs)).sum(-1).mean(), {"custom/k:sum": teacher.sum()}


def datum(length: int, **inputs: Any) -> types.Datum:
    tokens = list(range(5, 6 + length))
    every = {"target_tokens": tokens[1:], **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=every)


def values(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(len(shape)).normal(size=shape)).float()


CASES: list[tuple[Callable[..., Any], dict[str, Any], list[types.Datum]]] = [
    (
        dpo,
        {"logprobs": 1, "reference": 1, "sign": 0},
        [
            datum(n, reference=values(n), sign=types.TensorData.from_torch(torch.tensor(s)))
            for n, s in ((4, 1.0), (6, -1.0))
        ],
    ),
    (
        clipped,
        {"logprobs": 1, "logp_old": 1, "advantages": 1},
        [datum(n, logp_old=values(n) - 6, advantages=values(n)) for n in (3, 5)],
    ),
    (sequence, {"logprobs": 1, "mask": 1}, [datum(5, mask=torch.tensor([0.0, 1, 1, 0, 1]))]),
    (
        soft,
        {"logprobs": 2, "teacher": 2},
        [
            datum(4, target_tokens=torch.arange(12).view(4, 3), teacher=values(4, 3)),
            datum(2, target_tokens=torch.arange(4).view(2, 2), teacher=values(2, 2)),
        ],
    ),
]


@pytest.mark.parametrize(("function", "ranks", "data"), CASES)
def test_the_server_computes_what_the_client_would(
    service: tinker.ServiceClient,
    function: Callable[..., Any],
    ranks: dict[str, Any],
    data: list[types.Datum],
) -> None:
    """Without its id a handle runs in the SDK, on log-probabilities that it fetches first."""
    handle = service.create_custom_loss(function, ranks).result()
    assert handle.loss_id is not None
    found, norms = [], []
    for one in (handle, dataclasses.replace(handle, loss_id=None)):
        policy = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
        found.append(policy.forward_backward_custom(data, one).result().metrics)
        step = policy.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics or {}
        norms.append(step["grad_norm:mean"])
    found[1].pop("surrogate_loss:sum")  # of the SDK's own cross-entropy
    assert found[0].keys() == found[1].keys()
    for key, value in found[1].items():
        assert found[0][key] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] > 1e-4


def test_a_loss_is_only_for_its_session(service: tinker.ServiceClient, engine_url: str) -> None:
    def plain(logprobs: Any) -> Any:
        return logprobs.sum(), {}

    handle = service.create_custom_loss(plain, {"logprobs": 1})
    loss_id = handle.result().loss_id
    assert loss_id is not None
    other = tinker.ServiceClient(base_url=engine_url, api_key="tml-test")
    policy: Any = other.create_lora_training_client(MODEL, rank=1).result()
    with pytest.raises(tinker.RequestFailedError, match="has no custom loss"):
        policy.forward_backward([datum(3)], "custom", {"loss_id": loss_id}).result()
    other.close("success").result()


INPUTS = [{"name": "logprobs", "rank": 1}]


def node(op: str, target: str, *args: Any, name: str = "x", **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


def graph(*nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """The given nodes between the parameter `lp` and an output that returns the last."""
    result = {"tuple": [{"ref": nodes[-1]["name"]}, {"dict": {}}]}
    return [
        node("placeholder", "logprobs", name="lp"),
        *nodes,
        node("output", "output", result, name="out"),
    ]


LP = {"ref": "lp"}
FORBIDDEN: list[tuple[list[dict[str, Any]], str]] = [
    (graph(node("call_function", "os.system", "true")), "'os.system' is not among"),
    (graph(node("call_function", "builtins.eval", "1")), "not among"),
    (graph(node("call_function", "torch.load", "/etc/passwd")), "not among"),
    (graph(node("call_function", "torch.from_file", "/etc/passwd")), "not among"),
    (graph(node("call_function", "torch.rand", 3)), "not among"),
    (graph(node("call_method", "tofile", LP, "/tmp/x")), "not among"),
    (graph(node("call_method", "__reduce__", LP)), "not among"),
    (graph(node("call_method", "backward", LP)), "not among"),
    (graph(node("get_attr", "weight")), "kind 'get_attr' is not allowed"),
    (graph(node("call_module", "net", LP)), "kind 'call_module' is not allowed"),
    (graph(node("call_function", "torch.exp", LP, out=LP)), "out= is not allowed"),
    (graph(node("call_function", "torch.exp", {"ref": "later"})), "kind 'ref' is not allowed"),
    (graph(node("call_function", "torch.exp", {"code": "x"})), "kind 'code' is not allowed"),
    (graph(node("call_function", "operator.mul", LP, 2**60)), "integer is too large"),
    ([node("placeholder", "logprobs", name="lp")], "does not fit its inputs"),
    (graph(node("placeholder", "other")), "not the next of its inputs"),
]


@pytest.mark.parametrize(("nodes", "complaint"), FORBIDDEN)
def test_what_is_not_on_the_list_is_refused(nodes: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        CustomLoss("bad", INPUTS, nodes)


FAILING: list[tuple[list[dict[str, Any]], str]] = [
    (graph(node("call_function", "getattr", LP, "__class__")), "attribute '__class__'"),
    (graph(node("call_function", "getattr", LP, "grad_fn")), "attribute 'grad_fn'"),
    (graph(node("call_function", "torch.zeros", 10**15)), "more than 16777216 numbers"),
    (
        graph(
            node("call_method", "expand", LP, 10**6, -1, name="big"),
            node("call_method", "exp", {"ref": "big"}),
        ),
        "more than 16777216 numbers",
    ),
    (graph(node("call_function", "operator.pow", 10.0, 10**9)), "too large|out of range"),
    (graph(node("call_function", "operator.mul", [0], 10**9)), "takes tensors and numbers"),
    (graph(node("call_function", "math.exp", LP)), "math functions take numbers"),
    (
        graph(
            node("call_function", "operator.gt", LP, 0, name="mask"),
            node("call_function", "operator.getitem", LP, {"ref": "mask"}),
        ),
        "use torch.where",
    ),
    (graph(node("call_method", "exp", LP)), "must return a scalar loss"),
    (graph(node("call_function", "operator.add", 1, 2)), "must return a scalar loss"),
]


@pytest.mark.parametrize(("nodes", "complaint"), FAILING)
def test_what_cannot_be_computed_is_told(nodes: list[dict[str, Any]], complaint: str) -> None:
    """Before it is computed: none of these may take the memory or the time it asks for."""
    loss = CustomLoss("bad", INPUTS, nodes)
    with pytest.raises(UserError, match=complaint):
        loss(torch.zeros(20), {})


@pytest.mark.parametrize(
    "inputs", [[], [{"name": "lp", "rank": 1}], [{"name": "logprobs", "rank": 0}], [{"rank": 1}]]
)
def test_inputs_are_checked(inputs: list[Any]) -> None:
    with pytest.raises(UserError):
        CustomLoss("bad", inputs, graph(node("call_method", "sum", LP)))

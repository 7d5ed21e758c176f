"""Custom losses that the SDK has traced: rebuilt from an allow-list, then run.

`ServiceClient.create_custom_loss` sends a function `(logprobs, *inputs) -> (loss, metrics)` as a
list of nodes. A node names an operation, and no name is ever looked up that is not listed in
`posttrain/engine/operations.py`. Before a loss runs on real data it runs on shapes alone, which
takes no memory: a loss that would need more than its share is refused there.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.engine.errors import UserError
from posttrain.engine.operations import DTYPES, FUNCTIONS, METHODS

NODES = 1_000  # of one graph
INPUTS = 16
DEPTH = 8  # of nested arguments
CELLS = 2**24  # numbers that all nodes together may hold for one datum
INTEGER = 2**53  # bound of integers that are computed outside of tensors
METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")


class Node(NamedTuple):
    """One step: `function(*args, **kwargs)`, where arguments may be `Ref`s to earlier nodes."""

    name: str
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]


class Ref(NamedTuple):
    name: str


@dataclass(frozen=True)
class Input:
    name: str
    rank: int  # 0: a scalar, 1: (T,), 2: (T, K)


class CustomLoss:
    """A loss of one datum; the loss of a request is the sum over its data."""

    def __init__(self, name: str, inputs: Sequence[Any], nodes: Sequence[Any]) -> None:
        """Rebuild a graph from its JSON. Raises UserError naming what is not allowed."""
        self.name = name
        if not 1 <= len(inputs) <= INPUTS:
            raise UserError(f"custom loss {name!r}: not between 1 and {INPUTS} inputs")
        if len(nodes) > NODES:
            raise UserError(f"custom loss {name!r}: {len(nodes)} nodes; the limit is {NODES}")
        self.inputs = [read_input(raw) for raw in inputs]
        names = [one.name for one in self.inputs]
        if names[0] != "logprobs" or not self.inputs[0].rank or len(set(names)) < len(names):
            raise UserError(
                f"custom loss {name!r}: the first input must be logprobs, (T,) or (T, K)"
            )
        self.parameters: list[str] = []  # the placeholders' names, in the order of the inputs
        self.nodes: list[Node] = []
        self.output: Any = None
        known: set[str] = set()
        for raw in nodes:
            if not isinstance(raw, dict) or self.output is not None:
                raise UserError(f"custom loss {name!r}: its graph is not a list of nodes")
            try:
                self.add(raw, known)
            except (TypeError, ValueError) as error:
                raise UserError(f"custom loss {name!r}: {error}") from None
        if self.output is None or len(self.parameters) != len(self.inputs):
            raise UserError(f"custom loss {name!r}: its graph does not fit its inputs")
        self.measured: set[Any] = set()  # the shapes on which it was tried

    def add(self, raw: dict[str, Any], known: set[str]) -> None:
        op, target, own = raw.get("op"), raw.get("target"), raw.get("name")
        if not (isinstance(target, str) and isinstance(own, str) and own not in known):
            raise ValueError("a node has no target, or a name that is not its own")
        args, kwargs = raw.get("args", []), raw.get("kwargs", {})
        if not (isinstance(args, list) and isinstance(kwargs, dict)):
            raise ValueError(f"node {own!r} has no list of arguments")
        if op == "placeholder":
            if target not in [one.name for one in self.inputs[len(self.parameters) :][:1]]:
                raise ValueError(f"parameter {target!r} is not the next of its inputs")
            self.parameters.append(own)
        elif op == "output":
            self.output = read_output(decode(args, known))
        elif op in ("call_function", "call_method"):
            if "out" in kwargs:
                raise ValueError(f"node {own!r}: out= is not allowed")
            self.nodes.append(
                Node(
                    own,
                    find(op, target),
                    decode(args, known),
                    {key: decode(value, known) for key, value in kwargs.items()},
                )
            )
        else:
            raise ValueError(f"a node of kind {op!r} is not allowed")
        known.add(own)

    def __call__(
        self, logprobs: Tensor, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, metrics) of one datum, on values.

        Raises:
            UserError: an input is missing or has another rank; the loss does not fit the shapes,
                depends on values in a way that is not supported, or needs too much memory.
        """
        given = [logprobs, *(inputs[one.name] for one in self.inputs[1:] if one.name in inputs)]
        if len(given) < len(self.inputs):
            missing = [one.name for one in self.inputs[1:] if one.name not in inputs]
            raise UserError(f"custom loss {self.name!r} needs the input {missing[0]!r}")
        for place, one in enumerate(self.inputs):
            if not one.rank and given[place].numel() == 1:
                given[place] = given[place].reshape(())  # on the wire a scalar has no shape
            value = given[place]
            if value.ndim != one.rank:
                raise UserError(
                    f"custom loss {self.name!r}: {one.name} has {value.ndim} dimensions, "
                    f"{one.rank} were declared"
                )
        key = tuple((tuple(value.shape), value.dtype) for value in given)
        if key not in self.measured:
            self.run([torch.empty_like(value, device="meta") for value in given])
            self.measured.add(key)
        loss, metrics = self.run(given)
        if loss.ndim or not loss.is_floating_point():
            raise UserError(f"custom loss {self.name!r} must return a scalar loss")
        if any(not isinstance(value, Tensor) or value.numel() != 1 for value in metrics.values()):
            raise UserError(f"custom loss {self.name!r}: metrics must be scalar tensors")
        return loss, metrics

    def run(self, given: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        values: dict[str, Any] = dict(zip(self.parameters, given, strict=True))
        cells = 0
        for node in self.nodes:
            args = [look_up(arg, values) for arg in node.args]
            kwargs = {key: look_up(value, values) for key, value in node.kwargs.items()}
            if given[0].is_meta:  # new tensors are made where the inputs are
                kwargs = {k: v for k, v in kwargs.items() if k != "device"}
            try:
                with torch.device(given[0].device):
                    value = values[node.name] = node.function(*args, **kwargs)
                cells += size(value)
            except Exception as error:  # of many kinds, and all of them the graph's fault
                raise UserError(
                    f"custom loss {self.name!r} fails at {node.name}: "
                    f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
                    " (branches and indices that depend on values are not supported: use"
                    " torch.where, or pass a callable, which runs on the client)"
                ) from None
            if cells > CELLS:
                raise UserError(
                    f"custom loss {self.name!r} needs more than {CELLS} numbers for one datum"
                )
        loss, metrics = look_up(self.output, values)
        if not isinstance(loss, Tensor):
            raise UserError(f"custom loss {self.name!r} must return a scalar loss")
        return loss, metrics


def read_input(raw: Any) -> Input:
    name, rank = (raw.get("name"), raw.get("rank")) if isinstance(raw, dict) else (None, None)
    if not isinstance(name, str) or not NAME.fullmatch(name) or rank not in (0, 1, 2):
        raise UserError("an input of a custom loss needs a lowercase name and a rank of 0, 1 or 2")
    return Input(name, int(rank))


def read_output(args: Any) -> Any:
    pair = args[0] if isinstance(args, list) and len(args) == 1 else None
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ValueError("it must return (loss, metrics)")
    loss, metrics = pair
    if not isinstance(loss, Ref) or not isinstance(metrics, dict):
        raise ValueError("it must return (loss, metrics)")
    for key, value in metrics.items():
        if not (METRIC.fullmatch(key) and isinstance(value, Ref)):
            raise ValueError(
                f"metric {key!r} must be a tensor named custom/<name>:sum or custom/<name>:mean"
            )
    return (loss, metrics)


def find(op: str, target: str) -> Callable[..., Any]:
    if op == "call_function" and target in FUNCTIONS:
        return FUNCTIONS[target]
    if op == "call_method" and target in METHODS:

        def method(value: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(value, Tensor):
                raise TypeError(f"{target} is called on what is not a tensor")
            return getattr(value, target)(*args, **kwargs)

        return method
    raise ValueError(
        f"{target!r} is not among the {len(FUNCTIONS)} functions and {len(METHODS)} methods that "
        "run on the server; pass a callable to forward_backward_custom, which runs on the client"
    )


def decode(raw: Any, known: set[str], depth: int = 0) -> Any:
    """An argument from its JSON; references may only point back."""
    if depth > DEPTH:
        raise ValueError("an argument is nested too deeply")
    if raw is None or isinstance(raw, bool | str | float):
        return raw
    if isinstance(raw, int):
        return bounded(raw)
    if isinstance(raw, list):
        return [decode(one, known, depth + 1) for one in raw]
    if not isinstance(raw, dict) or len(raw) != 1:
        raise ValueError("an argument cannot be read")
    ((kind, value),) = raw.items()
    if kind == "ref" and isinstance(value, str) and value in known:
        return Ref(value)
    if kind == "tuple" and isinstance(value, list):
        return tuple(decode(one, known, depth + 1) for one in value)
    if kind == "dict" and isinstance(value, dict):
        return {key: decode(one, known, depth + 1) for key, one in value.items()}
    if kind == "slice" and isinstance(value, list) and len(value) == 3:
        return slice(*(decode(one, known, depth + 1) for one in value))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "dtype" and isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    if kind == "device" and value == "cpu":
        return torch.device("cpu")
    raise ValueError(f"an argument of kind {reprlib.repr(kind)} is not allowed")


def look_up(arg: Any, values: dict[str, Any]) -> Any:
    """An argument with its references replaced by values."""
    if isinstance(arg, Ref):
        return values[arg.name]
    if isinstance(arg, list):
        return [look_up(one, values) for one in arg]
    if isinstance(arg, tuple):
        return tuple(look_up(one, values) for one in arg)
    if isinstance(arg, dict):
        return {key: look_up(one, values) for key, one in arg.items()}
    if isinstance(arg, slice):
        return slice(*(look_up(one, values) for one in (arg.start, arg.stop, arg.step)))
    return arg


def size(value: Any) -> int:
    """Numbers that a result holds."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, tuple | list):
        return sum(map(size, value))
    if isinstance(value, int):
        bounded(value)
    return 1


def bounded(value: int) -> int:
    if abs(value) > INTEGER:
        raise ValueError("an integer is too large")
    return value

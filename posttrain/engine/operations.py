"""The operations that a custom loss may use, by the names that torch.fx gives them.

All are pure functions of tensors and numbers, without randomness, files or code. Left out is what
depends on values for its shape, and what could take long on small input.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Both a function of torch and a method of tensors, unless torch has no function of the name.
BOTH = """
abs absolute acos acosh add addcdiv addcmul all amax amin any argmax argmin asin asinh atan
atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor broadcast_to ceil chunk clamp
clamp_max clamp_min clip clone copysign cos cosh count_nonzero cummax cummin cumprod cumsum deg2rad
detach diag diff div divide dot eq erf erfc erfinv exp exp2 expand expand_as expm1 flatten flip
float float_power floor floor_divide fmax fmin fmod frac gather ge greater greater_equal gt
heaviside hypot index_select isclose isfinite isinf isnan isneginf isposinf kthvalue ldexp le lerp
less less_equal lgamma log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp
logical_and logical_not logical_or logical_xor logit logsumexp long lt masked_fill matmul max
maximum mean median min minimum mm movedim mul multiply mv nan_to_num nanmean nansum
narrow ne neg negative norm not_equal outer permute positive pow prod quantile rad2deg reciprocal
relu remainder repeat repeat_interleave reshape roll round rsqrt scatter scatter_add select
selu sgn sigmoid sign signbit sin sinc sinh softmax sort split sqrt square squeeze std sub subtract
sum swapaxes t take_along_dim tan tanh tile topk transpose tril triu trunc type_as
unbind unflatten unsqueeze var view view_as where xlogy bool contiguous double int new_full
new_ones new_zeros reshape_as dim numel size to ones_like zeros_like full_like stack cat
concat hstack vstack zeros ones full arange linspace
"""
NEURAL = """
binary_cross_entropy_with_logits elu gelu hardtanh huber_loss kl_div l1_loss leaky_relu log_softmax
logsigmoid mse_loss relu selu sigmoid silu smooth_l1_loss softmax softmin softplus tanh
"""
PLAIN = "ceil exp expm1 fabs floor isfinite isinf isnan log log10 log1p log2 sqrt tanh trunc"
OPERATORS = """
abs add and_ eq floordiv ge getitem gt inv invert le lt matmul mod mul ne neg not_ or_ pos pow sub
truediv xor
"""
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")


def functions() -> dict[str, Callable[..., Any]]:
    """Every function that a graph may call, by the name that tracing gives it."""
    found: dict[str, Callable[..., Any]] = {}
    for name in BOTH.split():
        if callable(getattr(torch, name, None)) and not isinstance(getattr(torch, name), type):
            found[f"torch.{name}"] = getattr(torch, name)
    for name in NEURAL.split():
        found[f"torch.nn.functional.{name}"] = getattr(torch.nn.functional, name)
    native = {"logsigmoid": "log_sigmoid"}
    for name in ("logsigmoid", "softplus", "gelu", "huber_loss", "leaky_relu"):
        neural = getattr(torch.nn.functional, name)
        found[f"torch._C._nn.{native.get(name, name)}"] = neural
    for name in ("expm1", "log1p", "logit", "xlogy"):
        found[f"torch._C._special.special_{name}"] = getattr(torch.special, name)
    found |= {f"math.{name}": number_only(getattr(math, name)) for name in PLAIN.split()}
    found |= {f"operator.{name}": arithmetic(name) for name in OPERATORS.split()}
    return found | {"getattr": attribute}


def number_only(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(value: Any) -> Any:
        if not isinstance(value, int | float):
            raise TypeError("math functions take numbers; use those of torch for tensors")
        return function(value)

    return call


def arithmetic(name: str) -> Callable[..., Any]:
    """An operator of Python on tensors and numbers: no repeated lists, no giant powers."""
    function = getattr(operator, name)
    kinds = (Tensor, int, float, torch.dtype, torch.device)

    def call(*values: Any) -> Any:
        if name == "getitem":
            return function(*values)
        if name == "add" and all(isinstance(value, tuple) for value in values):
            return function(*values)
        if not all(isinstance(value, kinds) for value in values):
            raise TypeError(f"operator {name} takes tensors and numbers here")
        if name == "pow" and not any(isinstance(value, Tensor) for value in values):
            return float(values[0]) ** float(values[1])
        return function(*values)

    return call


def attribute(value: Any, name: str) -> Any:
    if not isinstance(value, Tensor) or name not in ATTRIBUTES:
        known = ", ".join(ATTRIBUTES)
        raise TypeError(f"attribute {reprlib.repr(name)} is not available; known: {known}")
    return getattr(value, name)


FUNCTIONS = functions()
METHODS = {name for name in BOTH.split() if hasattr(Tensor, name)}
DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
}

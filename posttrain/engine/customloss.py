"""Training on a custom loss that the client has uploaded.

The chain rule does it: with w = -dL/dlogprobs, cross-entropy weighted by w has the gradient of L.
So a custom loss needs a forward pass, its own gradient by autograd, and a weighted cross-entropy;
the SDK does the same on the client where a server cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from posttrain.engine.datum import Datum
from posttrain.engine.errors import UserError
from posttrain.engine.graphs import CustomLoss
from posttrain.engine.trainer import Output, Trainer


def custom_forward_backward(
    trainer: Trainer, loss: CustomLoss, data: Sequence[Datum], *, backward: bool
) -> Output:
    """The sum of `loss` over `data`, and (with `backward`) its gradient, accumulated.

    Raises:
        UserError: the request cannot be computed or is not finite; nothing was changed.
    """
    for index, datum in enumerate(data):
        if "target_tokens" not in datum.inputs:
            raise UserError(f"datum {index}: a custom loss needs the input 'target_tokens'")
    plain = [Datum(d.tokens, {"target_tokens": d.inputs["target_tokens"]}) for d in data]
    output = trainer.forward_backward(plain, "cross_entropy", {}, backward=False)
    total = 0.0
    sums: dict[str, float] = {}
    weighted = []
    for index, (datum, found) in enumerate(zip(data, output.logprobs, strict=True)):
        logprobs = torch.from_numpy(np.array(found, np.float32)).requires_grad_()
        inputs = {key: torch.from_numpy(np.array(value)) for key, value in datum.inputs.items()}
        try:
            with torch.enable_grad():
                value, metrics = loss(logprobs, inputs)
                (gradient,) = torch.autograd.grad(value, logprobs) if backward else (None,)
        except UserError as error:
            raise UserError(f"datum {index}: {error}") from None
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise UserError(f"datum {index}: custom loss {loss.name!r}: {text}") from None
        if not torch.isfinite(value) or (gradient is not None and not gradient.isfinite().all()):
            raise UserError(f"datum {index}: custom loss {loss.name!r} is not finite")
        total += float(value)
        for key, metric in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(metric)
        if gradient is not None:
            inputs_of = {**plain[index].inputs, "weights": -gradient.numpy()}
            weighted.append(replace(plain[index], inputs=inputs_of))
    if backward:
        output = trainer.forward_backward(weighted, "cross_entropy", {})
    means = {key: value / len(data) for key, value in sums.items() if key.endswith(":mean")}
    return Output(output.logprobs, {**sums, **means, "loss:sum": total})

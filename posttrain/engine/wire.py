"""Between the protobuf messages of the Tinker API and the engine's own types."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tinker.proto import tinker_public_pb2 as pb

from posttrain.engine import limits
from posttrain.engine.datum import Datum
from posttrain.engine.errors import TooLargeError, UserError
from posttrain.engine.prompts import Targets
from posttrain.engine.sample import Result, Top
from posttrain.engine.trainer import Output

NUMPY: dict[int, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}
WHAT = {"image": "an image", "dmel": "audio (dmel)", None: "an empty chunk"}
EMPTY = -99999.0  # marks a cell of the most probable tokens that holds nothing
INTEGERS = np.dtype("<i8")


def read_forward_backward(body: bytes) -> Any:
    """Parse a `ForwardBackwardRequest`. Raises UserError where the bytes are not one."""
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise UserError(f"the body is not a ForwardBackwardRequest: {error}") from None
    return message


def read_settings(message: Any) -> dict[str, float | str]:
    """`loss_fn_config`, from the newer of its two encodings that is present."""
    if message.loss_fn_config_v2:
        return {
            key: value.text if value.WhichOneof("value") == "text" else value.number
            for key, value in message.loss_fn_config_v2.items()
        }
    return dict(message.loss_fn_config)


def read_data(message: Any) -> list[Datum]:
    """The data of a request. Raises UserError naming the index of one that cannot be read."""
    if len(message.data) > limits.DATA:
        raise TooLargeError(f"{len(message.data)} data in one request; the limit is {limits.DATA}")
    data, cells = [], 0
    for index, datum in enumerate(message.data):
        try:
            tokens = read_chunks(datum.model_input)
            inputs = {name: read_tensor(value) for name, value in datum.loss_fn_inputs.items()}
        except UserError as error:
            raise UserError(f"datum {index}: {error}") from None
        cells += sum(value.size for value in inputs.values())
        if cells > limits.CELLS:
            raise TooLargeError(f"the tensors of one request hold more than {limits.CELLS} numbers")
        data.append(Datum(tokens, inputs))
    return data


def read_chunks(chunks: Any) -> np.ndarray:
    """Token ids int64 of a model input made of text chunks."""
    parts = []
    for chunk in chunks:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            what = WHAT.get(kind, f"a chunk of kind {kind!r}")
            raise UserError(f"{what} is not supported by this engine, only encoded_text")
        if len(chunk.encoded_text.tokens) % 4:
            raise UserError("the bytes of encoded_text are not int32 tokens")
        parts.append(np.frombuffer(chunk.encoded_text.tokens, np.dtype("<i4")))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def read_tensor(message: Any) -> np.ndarray:
    """A dense array of a dense or sparse (CSR) tensor."""
    kind = NUMPY.get(message.dtype)
    if kind is None:
        raise UserError(f"a tensor of data type {message.dtype} is not supported")
    shape = tuple(message.shape)
    if any(size < 0 for size in shape) or len(shape) > 2 or math.prod(shape) > limits.CELLS:
        raise UserError(f"a tensor of shape {shape[:4]} is not supported")
    if len(shape) == 2 and shape[1] > limits.TARGETS:
        raise UserError(f"{shape[1]} targets at one position; the limit is {limits.TARGETS}")
    try:
        if message.WhichOneof("encoding") == "sparse_csr":
            return read_csr(message.sparse_csr, kind, shape)
        flat = np.frombuffer(message.dense, kind)
        return flat.reshape(shape) if shape else flat
    except (ValueError, IndexError) as error:
        raise UserError(f"a tensor's data do not fit its shape {shape}: {error}") from None


def read_csr(message: Any, kind: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Unfold compressed sparse rows; absent cells are zero."""
    values = np.frombuffer(message.values, kind)
    starts = np.frombuffer(message.crow_indices, INTEGERS)
    columns = np.frombuffer(message.col_indices, INTEGERS)
    row_of = check_csr(starts, columns, len(values), shape)
    dense = np.zeros(shape, kind)
    dense[row_of, columns] = values
    return dense


def check_csr(
    starts: np.ndarray, columns: np.ndarray, values: int, shape: tuple[int, ...]
) -> np.ndarray:
    """The row of each stored cell of a sparse matrix. Raises ValueError where they disagree."""
    if len(shape) != 2:
        raise ValueError("sparse tensors have two dimensions")
    rows, width = shape
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != values:
        raise ValueError("row starts are inconsistent")
    counts = np.diff(starts)
    if (counts < 0).any() or (counts > width).any():
        raise ValueError("row starts are inconsistent")
    if len(columns) != values or (values and not 0 <= columns.min() <= columns.max() < width):
        raise ValueError("column indices are inconsistent")
    return np.repeat(np.arange(rows), counts)


def write_output(output: Output) -> bytes:
    """A `ForwardBackwardOutput`: one record for each run of data of equal number of targets."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    message.metrics.update(output.metrics)
    start = 0
    while start < len(output.logprobs):
        trailing, end = output.logprobs[start].shape[1:], start + 1
        while end < len(output.logprobs) and output.logprobs[end].shape[1:] == trailing:
            end += 1
        part = [np.ascontiguousarray(x, "<f4") for x in output.logprobs[start:end]]
        record = message.loss_fn_outputs.add(num_datums=len(part))
        field = record.fields["logprobs"]
        field.data = b"".join(x.tobytes() for x in part)
        field.offsets = np.cumsum([0] + [x.nbytes for x in part]).astype("<i8").tobytes()
        field.dtype = pb.DTYPE_FLOAT32
        field.trailing_shape.extend(trailing)
        start = end
    return message.SerializeToString()


def write_tops(message: Any, tops: list[Top], length: int) -> None:
    """Rows of (token, log-probability), after as many empty ones as make up `length`."""
    k, empty = len(tops[0].tokens), max(0, length - len(tops))
    tokens = np.concatenate([np.zeros(empty * k, "<i4"), *(top.tokens for top in tops)])
    logprobs = np.concatenate([np.full(empty * k, EMPTY, "<f4"), *(top.logprobs for top in tops)])
    message.token_ids = tokens.astype("<i4").tobytes()
    message.logprobs = logprobs.astype("<f4").tobytes()
    message.k, message.length = k, empty + len(tops)


def write_result(result: Result, targets: Targets | None = None) -> bytes:
    """A `SampleResponse`; `targets` are those of the request."""
    message = pb.SampleResponse()
    for sample in result.samples:
        sequence = message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if sample.stopped else pb.STOP_REASON_LENGTH,
            tokens=np.array(sample.tokens, "<i4").tobytes(),
            logprobs=np.array(sample.logprobs, "<f4").tobytes(),
        )
        if sample.tops:
            write_tops(sequence.topk_sampled_logprobs, sample.tops, 0)
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = result.prompt_logprobs.astype("<f4").tobytes()
    if result.prompt_tops:
        write_tops(message.topk_prompt_logprobs, result.prompt_tops, result.prompt_length)
    if targets is not None and result.target_scores is not None:
        write_targets(message.target_prompt_logprobs, targets, result.target_scores)
    if result.alternatives is not None:
        tokens, logprobs = result.alternatives
        for part, array in (
            (message.prompt_alt_tokens.tokens, tokens.astype("<i8")),
            (message.prompt_alt_tokens.logprobs, logprobs.astype("<f4")),
        ):
            part.dense = array.tobytes()
            part.dtype = pb.DTYPE_INT64 if array.dtype == INTEGERS else pb.DTYPE_FLOAT32
            part.shape.extend(array.shape)
    return message.SerializeToString()


def write_targets(message: Any, targets: Targets, scores: np.ndarray) -> None:
    """The scores in the layout, dense or sparse, in which they were asked for."""
    message.dtype = pb.DTYPE_FLOAT32
    message.shape.extend(targets.shape)
    data = scores.astype("<f4").tobytes()
    if targets.starts is None or targets.columns is None:
        message.dense = data
        return
    message.sparse_csr.values = data
    message.sparse_csr.crow_indices = targets.starts.astype("<i8").tobytes()
    message.sparse_csr.col_indices = targets.columns.astype("<i8").tobytes()

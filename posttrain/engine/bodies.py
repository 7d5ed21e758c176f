"""The bodies of requests: read to a bound, decompressed to a bound, parsed."""

from __future__ import annotations

import json
from typing import Any

import zstandard
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from posttrain.engine import limits
from posttrain.engine.errors import TooLargeError, UserError
from posttrain.engine.wire import read_forward_backward

LARGE = 2**20  # bytes beyond which parsing leaves the event loop
PIECE = 2**12  # compressed bytes at a time: even the worst become no more than 128 MiB


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, decompressed.

    Raises:
        TooLargeError: before or after decompression it is longer than `limit` bytes.
        UserError: it cannot be decompressed.
    """
    parts, length = [], 0
    async for part in request.stream():
        parts.append(part)
        length += len(part)
        if length > limit:
            raise TooLargeError(f"the body is longer than {limit} bytes")
    body = b"".join(parts)
    if request.headers.get("content-encoding", "identity").lower() == "zstd":
        return await run_in_threadpool(decompress, body, limit)
    return body


def decompress(body: bytes, limit: int) -> bytes:
    """Undo zstd, never holding much more than `limit` bytes of what comes out."""
    # The window bounds what the decompressor itself allocates on the word of the frame.
    reader = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
    parts, length = [], 0
    try:
        for start in range(0, len(body), PIECE):
            parts.append(reader.decompress(body[start : start + PIECE]))
            length += len(parts[-1])
            if length > limit:
                raise TooLargeError(f"the decompressed body is longer than {limit} bytes")
    except zstandard.ZstdError as error:
        raise UserError(f"the body is not zstd: {error}") from None
    if not reader.eof or reader.unused_data:
        raise UserError("the body is not one whole zstd frame")
    return b"".join(parts)


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries; an empty body is an empty object."""
    return parse_object(await read_body(request, limits.JSON))


async def large_json_body(request: Request) -> tuple[dict[str, Any], int]:
    """A JSON object that may hold tensors, and its size in bytes."""
    raw = await read_body(request, limits.PROMPT)
    if len(raw) > LARGE:
        return await run_in_threadpool(parse_object, raw), len(raw)
    return parse_object(raw), len(raw)


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises UserError for what is not JSON, not an object, or not representable."""
    try:
        body = json.loads(raw or b"{}", parse_constant=refuse_constant)
        if b"\\u" in raw:  # half a surrogate pair could be stored, but never be sent again
            json.dumps(body, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError("the body is not JSON: nested too deeply") from None
    except UnicodeEncodeError:
        raise UserError("the body holds half of a surrogate pair") from None
    except ValueError as error:
        raise UserError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserError("the body is not a JSON object")
    return body


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


async def forward_backward_body(request: Request) -> tuple[Any, int]:
    """The protobuf message of a `forward_backward` request, and its size in bytes."""
    raw = await read_body(request, limits.BODY)
    if len(raw) > LARGE:
        return await run_in_threadpool(read_forward_backward, raw), len(raw)
    return read_forward_backward(raw), len(raw)

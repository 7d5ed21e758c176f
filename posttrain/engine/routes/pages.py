"""Parts of long lists, and moments in time, as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from posttrain.engine.errors import UserError

LIMIT = 1_000  # entries of a page, at most


def page(request: Request, items: list[Any], limit: int) -> tuple[list[Any], dict[str, int]]:
    """The part of `items` that the query's offset and limit ask for, and the API's cursor."""
    offset = number(request, "offset", 0)
    limit = min(number(request, "limit", limit), LIMIT)
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return items[offset : offset + limit], cursor


def number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{name} must be a number from 0 up")
    return int(text)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()

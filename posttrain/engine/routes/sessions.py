"""Routes of sessions: opening, closing, listing, searching, tracing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.engine.access import USER
from posttrain.engine.bodies import json_body
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.paths import session_of
from posttrain.engine.records import Checkpoint
from posttrain.engine.requests import need, optional, read_metadata, read_text
from posttrain.engine.routes.files import Files
from posttrain.engine.routes.pages import moment, page
from posttrain.engine.sessions import REASONS, SessionRecord

STATUSES = ("active", "cancelled", "failed", "client_finished")
OWNERS = ("own", "accessible", "user")
PAGE = 200  # sessions on a page of search results, at most


def session_routes(engine: Engine, files: Files) -> list[Route]:
    sessions = engine.sessions

    async def create(request: Request) -> Response:
        body = await json_body(request)
        session_id = sessions.create(
            read_metadata(body), read_text(body, "display_name"), read_text(body, "project_id")
        )
        return JSONResponse({"session_id": session_id, "type": "create_session"})

    async def heartbeat(request: Request) -> Response:
        sessions.heartbeat(need(await json_body(request), "session_id", str))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish(request: Request) -> Response:
        body = await json_body(request)
        reason = optional(body, "reason", dict, {}).get("type", "success")
        if reason not in REASONS:
            raise UserError(f"unknown reason {str(reason)[:80]!r}; known: {', '.join(REASONS)}")
        sessions.finish(request.path_params["session"], reason, read_text(body, "detail"))
        return Response(status_code=204)

    async def list_sessions(request: Request) -> Response:
        records = await run_in_threadpool(sessions.records)
        chosen, _ = page(request, [record.session_id for record in records], 20)
        return JSONResponse({"sessions": chosen})

    async def get(request: Request) -> Response:
        record = sessions.record(request.path_params["session"])
        session_id, live = record.session_id, sessions.live.get(record.session_id)
        runs = await run_in_threadpool(engine.store.runs)
        return JSONResponse(
            {
                "training_run_ids": [
                    r.run for r in reversed(runs) if session_of(r.run) == session_id
                ],
                "sampler_ids": list(live.samplers) if live else [],
                "user_metadata": record.user_metadata,
                "display_name": record.display_name,
            }
        )

    async def assign(request: Request) -> Response:
        project = read_text(await json_body(request), "project_id")
        if not project:
            raise UserError("the request's 'project_id' is missing")
        sessions.assign(request.path_params["session"], project)
        return Response(status_code=204)

    async def trace(request: Request) -> Response:
        """The address of the trace. Nothing has to be built first, so it is ready at once."""
        session_id = sessions.record(request.path_params["session"]).session_id
        url = files.address(request, f"traces/{session_id}")
        return JSONResponse({"status": "ready", "url": url})

    async def search(request: Request) -> Response:
        body = await json_body(request)
        limit = optional(body, "limit", int, 50)
        if not 1 <= limit <= PAGE:
            raise UserError(f"limit is {limit}, not between 1 and {PAGE}")
        records = await run_in_threadpool(sessions.records)
        live = set(sessions.live)
        found = [record for record in records if matches(record, status(record, live), body)]
        left = after(found, optional(body, "cursor", dict, None))
        chosen = left[:limit]
        stored = await run_in_threadpool(engine.store.checkpoints) if chosen else []
        content: dict[str, Any] = {
            "sessions": [summary(record, status(record, live), stored) for record in chosen]
        }
        if len(left) > limit:
            last = chosen[-1]
            content["next_cursor"] = {
                "last_created_at": moment(last.created),
                "last_session_id": last.session_id,
            }
        return JSONResponse(content)

    one = "/api/v1/sessions/{session}"
    return [
        Route("/api/v1/create_session", create, methods=["POST"]),
        Route("/api/v1/session_heartbeat", heartbeat, methods=["POST"]),
        Route("/api/v1/sessions/search", search, methods=["POST"]),
        Route("/api/v1/sessions", list_sessions),
        Route(one, get),
        Route(f"{one}/finish", finish, methods=["POST"]),
        Route(f"{one}/project", assign, methods=["PUT"]),
        Route(f"{one}/trace_export", trace),
    ]


def status(record: SessionRecord, live: set[str]) -> dict[str, Any] | None:
    """As the API tells it: None where a session neither finished nor is known to be running."""
    if record.finished is not None:
        reason = {"type": record.finished}
        return {"type": "client_finished", "reason": reason, "detail": record.detail}
    return {"type": "active"} if record.session_id in live else None


def matches(record: SessionRecord, state: dict[str, Any] | None, body: dict[str, Any]) -> bool:
    """Whether a session is among those that a search asks for. Raises UserError."""
    owner = optional(body, "owner", dict, {"type": "own"})
    if owner.get("type") not in OWNERS:
        raise UserError(f"unknown owner; known: {', '.join(OWNERS)}")
    if owner["type"] == "user" and USER not in need(owner, "owner_urns", list):
        return False
    projects = optional(body, "project_ids", list, None)
    if projects is not None and record.project_id not in projects:
        return False
    wanted = optional(body, "user_metadata", dict, {}).items()
    if any((record.user_metadata or {}).get(key) != value for key, value in wanted):
        return False
    asked = optional(body, "statuses", list, None)
    if asked is not None and not any(is_status(state, one) for one in asked):
        return False
    session_id, name = read_text(body, "session_id"), read_text(body, "display_name")
    if session_id is None and name is None:
        return True
    words, title = (name or "").lower().split(), (record.display_name or "").lower()
    named = name is not None and all(word in title for word in words)
    return named or session_id == record.session_id


def is_status(state: dict[str, Any] | None, query: Any) -> bool:
    kind = query.get("type") if isinstance(query, dict) else None
    if kind not in STATUSES:
        raise UserError(f"unknown status; known: {', '.join(STATUSES)}")
    if state is None or state["type"] != kind:
        return False
    reasons = optional(query, "reasons", list, None)
    return reasons is None or state["reason"]["type"] in reasons


def after(records: list[SessionRecord], cursor: dict[str, Any] | None) -> list[SessionRecord]:
    """Those that follow the last one of the page before."""
    if cursor is None:
        return records
    try:
        created = datetime.fromisoformat(need(cursor, "last_created_at", str)).timestamp()
    except (ValueError, OverflowError):
        raise UserError("the cursor's last_created_at is not a moment in time") from None
    # Rounded: the cursor has microseconds.
    place = (-round(created, 6), need(cursor, "last_session_id", str))
    return [r for r in records if (-round(r.created, 6), r.session_id) > place]


def summary(
    record: SessionRecord, state: dict[str, Any] | None, checkpoints: list[Checkpoint]
) -> dict[str, Any]:
    mine = [c for c in checkpoints if session_of(c.run) == record.session_id]
    return {
        "session_id": record.session_id,
        "created_at": moment(record.created),
        "owner": USER,
        "project_id": record.project_id,
        "status": state,
        "checkpoints_count": len(mine),
        "checkpoint_storage_bytes": sum(checkpoint.size_bytes for checkpoint in mine),
        "display_name": record.display_name,
        "user_metadata": record.user_metadata,
    }

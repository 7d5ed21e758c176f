"""Routes about the engine and its user: flags, identity, models, usage, health."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.engine import limits
from posttrain.engine.access import USER, Keys
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.paths import session_of
from posttrain.engine.sessions import PROJECT, SessionRecord
from posttrain.engine.usage import CHECKPOINT, HOUR, PREFILL, Key

CLIENT_CONFIG = {
    # Requests arrive in the order of their ids; one call is one request unless it is huge.
    "parallel_fwdbwd_chunks": False,
    "fwdbwd_max_chunk_len": limits.DATA,
    "fwdbwd_max_chunk_bytes_count": limits.CHUNK,
    "fwdbwd_dispatch_bytes_semaphore_size": limits.WAITING_BYTES,
    # Each sample in flight holds two connections: stay below common limits on open files.
    "sample_max_concurrent_requests": 400,
    "sample_join_sampling_session": True,
    # On one machine a lost request is a bug to be seen, not a fault to be retried.
    "sample_no_retries": True,
    "sample_enable_stuck_detection": False,
    "custom_loss_server_side": True,
    "pjwt_auth_enabled": True,  # the only way in which `whoami` can be answered
}


def account_routes(engine: Engine, keys: Keys, *, remote: bool) -> list[Route]:
    """`remote`: clients may be on other machines."""

    def constant(content: Mapping[str, Any]) -> Callable[..., Any]:
        async def handler(request: Request) -> Response:
            return JSONResponse(content)

        return handler

    async def token(request: Request) -> Response:
        return JSONResponse({"jwt": keys.token()})

    async def healthz(request: Request) -> Response:
        counts = {
            "largest_batch": engine.worker.largest_batch,
            "sessions": len(engine.sessions.live),
            "training_clients": len(engine.clients),
            "samplers": len(engine.samplers.by_id),
            "results": len(engine.promises.by_id),
        }
        return JSONResponse({"status": "ok", **counts})

    async def capabilities(request: Request) -> Response:
        models = [
            {
                "model_name": model.name,
                "max_context_length": model.config.max_position_embeddings,
                "trainable": True,
                "sampleable": True,
            }
            for model in engine.models.by_name.values()
        ]
        return JSONResponse({"supported_models": models})

    def session(session_id: str) -> SessionRecord | None:
        try:
            return engine.sessions.record(session_id)
        except UserError:
            return None

    async def usage(request: Request) -> Response:
        """Tokens by hour and training run. Nothing costs anything here."""
        start, end = hour_of(request, "starting_on"), hour_of(request, "ending_before")
        rows = list(await run_in_threadpool(lambda: list(engine.usage.between(start, end))))
        owners = {key.session_id: session(key.session_id) for key, _ in rows}
        sessions = {s: {"user_metadata": r.user_metadata if r else None} for s, r in owners.items()}
        data = [event(key, count, owners[key.session_id]) for key, count in rows]
        return JSONResponse({"data": data, "sessions": sessions})

    async def storage(request: Request) -> Response:
        project = request.query_params.get("project_id")
        sizes: dict[str, list[int]] = {}
        for checkpoint in await run_in_threadpool(engine.store.checkpoints):
            owner = session(session_of(checkpoint.run))
            name = owner.project_id if owner else PROJECT
            if project in (None, name):
                sizes.setdefault(name, []).append(checkpoint.size_bytes)
        data = [
            {
                "project_id": name,
                "org_user_urn": USER,
                "checkpoint_count": len(each),
                "size_bytes": sum(each),
                "size_gigabytes": sum(each) / 1e9,
                "estimated_monthly_cost_usd": 0.0,
            }
            for name, each in sorted(sizes.items())
        ]
        return JSONResponse({"data": data, "effective_rate_usd_per_gigabyte_month": 0.0})

    config = CLIENT_CONFIG | {"proto_compress_fwdbwd": remote}
    posts = {
        "client/config": constant(config),
        "client/dynamic_config": constant({"refresh_interval_sec": 300}),
        "telemetry": constant({"status": "accepted"}),  # and thrown away
        "auth/token": token,
    }
    gets = {
        "get_server_capabilities": capabilities,
        "audit": constant({"entries": []}),  # one user, nobody to audit
        "billing/usage/events": usage,
        "billing/usage/checkpoints/current": storage,
    }
    found = [Route(f"/api/v1/{path}", call, methods=["POST"]) for path, call in posts.items()]
    found += [Route(f"/api/v1/{path}", call) for path, call in gets.items()]
    return found + [Route(f"{prefix}/healthz", healthz) for prefix in ("", "/api/v1")]


def hour_of(request: Request, name: str) -> float:
    """A moment of the query, in seconds since the epoch. Without a time zone it is UTC."""
    try:
        found = datetime.fromisoformat(request.query_params.get(name, ""))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UserError(f"{name} must be a moment in time such as 2026-01-31T12:00:00Z") from None


def event(key: Key, count: int, owner: SessionRecord | None) -> dict[str, Any]:
    """One line of the usage report. `training_run_id` is an addition of this engine."""
    start = datetime.fromtimestamp(key.hour * HOUR, UTC)
    info: dict[str, Any] = {"type": key.kind, "token_count": count}
    if key.kind == CHECKPOINT:
        info = {"type": key.kind, "count": count}
    if key.kind == PREFILL:
        info["cached"] = False
    return {
        "bucket_start": start.isoformat(),
        "bucket_end": datetime.fromtimestamp((key.hour + 1) * HOUR, UTC).isoformat(),
        "base_model": key.base_model,
        "user_id": USER,
        "session_id": key.session_id,
        "project_id": owner.project_id if owner else PROJECT,
        "estimated_cost_usd": None if key.kind == CHECKPOINT else 0.0,
        "effective_rate_usd_per_million_tokens": None if key.kind == CHECKPOINT else 0.0,
        "training_run_id": key.run,
        "event_info": info,
    }

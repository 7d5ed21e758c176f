"""Routes that read or tidy what exists: models, sessions, runs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.engine.checkpoints import SAMPLER, WEIGHTS, Checkpoint, RunRecord
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.requests import body_of, optional

KINDS = {WEIGHTS: "training", SAMPLER: "sampler"}


def routes(engine: Engine) -> list[Route]:
    """GET and similar requests answered from the engine's memory and its store."""
    records = Records(engine)
    one = "/training_runs/{run}/checkpoints/{segment}/{name}"
    table: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/get_server_capabilities", records.capabilities),
        ("GET", "/samplers/{sampler}", records.sampler),
        ("POST", "/weights_info", records.weights_info),
        ("GET", "/training_runs", records.list_runs),
        ("GET", "/training_runs/{run}", records.get_run),
        ("GET", "/training_runs/{run}/checkpoints", records.run_checkpoints),
        ("GET", "/checkpoints", records.all_checkpoints),
        ("DELETE", one, records.delete),
        ("POST", one + "/publish", records.publish),
        ("DELETE", one + "/publish", records.unpublish),
        ("PUT", one + "/ttl", records.set_ttl),
        ("GET", "/sessions", records.list_sessions),
        ("GET", "/sessions/{session}", records.get_session),
    ]
    return [Route(f"/api/v1{path}", call, methods=[method]) for method, path, call in table]


class Records:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.store = engine, engine.store

    async def capabilities(self, request: Request) -> Response:
        models = [
            {
                "model_name": model.name,
                "max_context_length": model.config.max_position_embeddings,
                "trainable": True,
                "sampleable": True,
            }
            for model in self.engine.models.by_name.values()
        ]
        return JSONResponse({"supported_models": models})

    async def sampler(self, request: Request) -> Response:
        sampler_id = request.path_params["sampler"]
        weights = self.engine.sampler(sampler_id)
        content = {"sampler_id": sampler_id, "base_model": weights.model.path}
        return JSONResponse(content | ({"model_path": weights.path} if weights.path else {}))

    async def weights_info(self, request: Request) -> Response:
        checkpoint = self.store.get(str((await body_of(request)).get("tinker_path")))
        lora = checkpoint.lora
        return JSONResponse(
            {
                "base_model": checkpoint.base_model,
                "optimizer_config": {"type": "adamw"},
                "is_lora": True,
                "lora_rank": lora.rank,
                "train_unembed": lora.train_unembed,
                "train_mlp": lora.train_mlp,
                "train_attn": lora.train_attn,
            }
        )

    async def list_runs(self, request: Request) -> Response:
        runs = self.store.runs()
        chosen, cursor = page(request, runs, 20)
        return JSONResponse({"training_runs": [self.run(run) for run in chosen], "cursor": cursor})

    async def get_run(self, request: Request) -> Response:
        return JSONResponse(self.run(self.store.run(request.path_params["run"])))

    def run(self, record: RunRecord) -> dict[str, Any]:
        checkpoints = self.store.checkpoints(record.run)
        newest = {c.segment: describe(c) for c in reversed(checkpoints)}
        client = self.engine.clients.get(record.run)
        used = [record.created, *(c.time for c in checkpoints), *([client.used] if client else [])]
        return {
            "training_run_id": record.run,
            "base_model": record.base_model,
            "model_owner": "local",
            "is_lora": True,
            "lora_rank": record.lora.rank,
            "corrupted": False,
            "last_request_time": moment(max(used)),
            "last_checkpoint": newest.get(WEIGHTS),
            "last_sampler_checkpoint": newest.get(SAMPLER),
            "user_metadata": record.user_metadata,
        }

    async def run_checkpoints(self, request: Request) -> Response:
        record = self.store.run(request.path_params["run"])
        found = self.store.checkpoints(record.run)
        return JSONResponse({"checkpoints": [describe(checkpoint) for checkpoint in found]})

    async def all_checkpoints(self, request: Request) -> Response:
        chosen, cursor = page(request, self.store.checkpoints(), 100)
        return JSONResponse({"checkpoints": [describe(c) for c in chosen], "cursor": cursor})

    async def delete(self, request: Request) -> Response:
        self.store.delete(path_of(request))
        return Response(status_code=204)

    async def publish(self, request: Request) -> Response:
        self.store.publish(path_of(request), True)
        return Response(status_code=204)

    async def unpublish(self, request: Request) -> Response:
        self.store.publish(path_of(request), False)
        return Response(status_code=204)

    async def set_ttl(self, request: Request) -> Response:
        self.store.set_expiry(
            path_of(request), optional(await body_of(request), "ttl_seconds", int, None)
        )
        return Response(status_code=204)

    async def list_sessions(self, request: Request) -> Response:
        chosen, _ = page(request, list(reversed(self.engine.sessions)), 20)
        return JSONResponse({"sessions": chosen})

    async def get_session(self, request: Request) -> Response:
        session_id = request.path_params["session"]
        if session_id not in self.engine.sessions:
            raise UserError(f"there is no session {session_id!r}")
        session = self.engine.sessions[session_id]
        return JSONResponse(
            {
                "training_run_ids": session.runs,
                "sampler_ids": session.samplers,
                "user_metadata": session.user_metadata,
                "display_name": session.display_name,
            }
        )


def path_of(request: Request) -> str:
    return "tinker://{run}/{segment}/{name}".format(**request.path_params)


def page(request: Request, items: list[Any], limit: int) -> tuple[list[Any], dict[str, int]]:
    """The part of `items` that the query's offset and limit ask for, and the API's cursor."""
    try:
        offset = max(0, int(request.query_params.get("offset", 0)))
        limit = max(0, int(request.query_params.get("limit", limit)))
    except ValueError:
        raise UserError("offset and limit must be integers") from None
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return items[offset : offset + limit], cursor


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    expires = checkpoint.expires_at
    return {
        "checkpoint_id": f"{checkpoint.segment}/{checkpoint.name}",
        "checkpoint_type": KINDS[checkpoint.segment],
        "time": moment(checkpoint.time),
        "tinker_path": checkpoint.path,
        "size_bytes": checkpoint.size_bytes,
        "public": checkpoint.public,
        "user_metadata": checkpoint.user_metadata,
        "expires_at": None if expires is None else moment(expires),
    }


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()

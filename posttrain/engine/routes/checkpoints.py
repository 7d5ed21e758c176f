"""Routes of training runs and their checkpoints: reading, tidying, copying, fetching."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.engine.bodies import json_body
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.paths import EXTERNAL, KINDS, SAMPLER, WEIGHTS, run_name, session_of
from posttrain.engine.records import Checkpoint, RunRecord
from posttrain.engine.requests import need, optional, read_text
from posttrain.engine.routes.files import LIFE, Files
from posttrain.engine.routes.pages import moment, page
from posttrain.engine.sessions import PROJECT, SessionRecord

SCOPES = ("owned", "accessible")


def checkpoint_routes(engine: Engine, files: Files) -> list[Route]:
    found = Checkpoints(engine, files)
    one = "/training_runs/{run}/checkpoints/{segment}/{name}"
    table: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", "/weights_info", found.weights_info),
        ("POST", "/copy_weights", found.copy),
        ("GET", "/training_runs", found.list_runs),
        ("GET", "/training_runs/{run}", found.get_run),
        ("GET", "/training_runs/{run}/checkpoints", found.run_checkpoints),
        ("GET", "/checkpoints", found.all_checkpoints),
        ("DELETE", one, found.delete),
        ("POST", one + "/publish", found.publish),
        ("DELETE", one + "/publish", found.unpublish),
        ("PUT", one + "/ttl", found.set_ttl),
        ("GET", one + "/external_weights_urls", found.urls),
    ]
    return [Route(f"/api/v1{path}", call, methods=[method]) for method, path, call in table]


class Checkpoints:
    """The store reads and writes files, so it is asked in threads."""

    def __init__(self, engine: Engine, files: Files) -> None:
        self.engine, self.store, self.files = engine, engine.store, files

    async def weights_info(self, request: Request) -> Response:
        path = need(await json_body(request), "tinker_path", str)
        checkpoint = await run_in_threadpool(self.store.get, path)
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
        scope = request.query_params.get("access_scope", SCOPES[0])
        if scope not in SCOPES:
            raise UserError(f"unknown access_scope {scope[:80]!r}; known: {', '.join(SCOPES)}")
        project = request.query_params.get("project_id")

        def read() -> dict[str, Any]:
            runs = [r for r in self.store.runs() if project in (None, self.project(r.run))]
            chosen, cursor = page(request, runs, 20)
            return {"training_runs": [self.describe_run(run) for run in chosen], "cursor": cursor}

        return JSONResponse(await run_in_threadpool(read))

    def project(self, run: str) -> str:
        try:
            return self.engine.sessions.record(session_of(run)).project_id
        except UserError:
            return PROJECT  # a run that is older than the records of sessions

    async def get_run(self, request: Request) -> Response:
        run = request.path_params["run"]
        return JSONResponse(await run_in_threadpool(lambda: self.describe_run(self.store.run(run))))

    def describe_run(self, record: RunRecord) -> dict[str, Any]:
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
        record = await run_in_threadpool(self.store.run, request.path_params["run"])
        found = await run_in_threadpool(self.store.checkpoints, record.run)
        return JSONResponse({"checkpoints": [describe(checkpoint) for checkpoint in found]})

    async def all_checkpoints(self, request: Request) -> Response:
        chosen, cursor = page(request, await run_in_threadpool(self.store.checkpoints), 100)
        return JSONResponse({"checkpoints": [describe(c) for c in chosen], "cursor": cursor})

    async def delete(self, request: Request) -> Response:
        await run_in_threadpool(self.store.delete, path_of(request))
        return Response(status_code=204)

    async def publish(self, request: Request) -> Response:
        await run_in_threadpool(self.store.publish, path_of(request), True)
        return Response(status_code=204)

    async def unpublish(self, request: Request) -> Response:
        await run_in_threadpool(self.store.publish, path_of(request), False)
        return Response(status_code=204)

    async def set_ttl(self, request: Request) -> Response:
        ttl = optional(await json_body(request), "ttl_seconds", int, None)
        await run_in_threadpool(self.store.set_expiry, path_of(request), ttl)
        return Response(status_code=204)

    async def urls(self, request: Request) -> Response:
        """Addresses of the files of exported weights; those of others hold what is internal."""
        path = path_of(request)
        checkpoint = await run_in_threadpool(self.store.get, path)
        if checkpoint.segment != EXTERNAL:
            raise UserError(f"{path} is not exported; save_weights_external writes what is")
        names = sorted(checkpoint.checksums)
        prefix = f"weights/{checkpoint.run}/{checkpoint.segment}/{checkpoint.name}"
        urls = {name: self.files.address(request, f"{prefix}/{name}") for name in names}
        expires = moment(int(time.time()) + LIFE)
        return JSONResponse({"urls": urls, "expires": expires})

    async def copy(self, request: Request) -> Response:
        """Into a new run: of a session where one is named, else of a project."""
        body = await json_body(request)
        source, ttl = need(body, "source_path", str), optional(body, "ttl_seconds", int, None)
        if body.get("session_id") is not None:
            session = self.engine.sessions.get(need(body, "session_id", str))
            run = run_name(session.record.session_id, need(body, "model_seq_id", int))
            copied = await run_in_threadpool(self.store.copy, source, run, ttl)
            return JSONResponse({"tinker_path": copied.path})
        project = read_text(body, "destination_project_id")
        if not project:
            raise UserError("name a destination_project_id, or a session_id and a model_seq_id")
        owner = str(uuid.uuid4())
        copied = await run_in_threadpool(self.store.copy, source, run_name(owner, 0), ttl)
        record = SessionRecord(
            owner, display_name=f"copy of {source}", project_id=project, finished="success"
        )
        self.engine.sessions.put(record)
        return JSONResponse({"tinker_path": copied.path})


def path_of(request: Request) -> str:
    return "tinker://{run}/{segment}/{name}".format(**request.path_params)


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

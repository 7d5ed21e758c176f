"""Files that are fetched by a signed address, as browsers and `curl` do: without the key."""

from __future__ import annotations

import time
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from posttrain.engine.access import FILES, Keys, detail
from posttrain.engine.engine import Engine

LIFE = 3600  # seconds that an address works


class Files:
    def __init__(self, engine: Engine, keys: Keys) -> None:
        self.engine, self.keys = engine, keys

    def address(self, request: Request, path: str) -> str:
        """Where `path` can be fetched for an hour, at the address that the caller used."""
        expires = int(time.time()) + LIFE
        signature = self.keys.sign(f"{expires} {path}")
        base = f"{request.url.scheme}://{request.headers['host']}{FILES}"
        return f"{base}{expires}/{signature}/{quote(path, safe='/:')}"

    def routes(self) -> list[Route]:
        prefix = FILES + "{expires:int}/{signature}"
        return [
            Route(prefix + "/traces/{session}", self.trace),
            Route(prefix + "/weights/{run}/{segment}/{name}/{file}", self.weights),
        ]

    def refusal(self, request: Request, path: str) -> Response | None:
        expires, signature = request.path_params["expires"], request.path_params["signature"]
        if not self.keys.signed(f"{expires} {path}", signature):
            return detail(403, "the address is not one that this engine has given out")
        if time.time() > expires:
            return detail(403, "the address has expired; ask for a new one")
        return None

    async def trace(self, request: Request) -> Response:
        session_id = request.path_params["session"]
        refused = self.refusal(request, f"traces/{session_id}")
        if refused is not None:
            return refused
        trace = self.engine.traces.export(session_id)
        return Response(trace, media_type="application/json")

    async def weights(self, request: Request) -> Response:
        parts = [request.path_params[key] for key in ("run", "segment", "name")]
        file = request.path_params["file"]
        refused = self.refusal(request, "/".join(["weights", *parts, file]))
        if refused is not None:
            return refused
        checkpoint = await run_in_threadpool(self.engine.store.get, "tinker://" + "/".join(parts))
        if file not in checkpoint.checksums:
            return detail(404, f"{checkpoint.path} has no file {file!r}")
        path = await run_in_threadpool(self.engine.store.verified, checkpoint, file)
        return FileResponse(path, media_type="application/octet-stream")

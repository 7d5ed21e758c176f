"""The engine behind HTTP: the Tinker API on this machine.

The event loop only parses and answers. Mistakes of the caller are answered with 400 and a
sentence in `detail`, or as a failed promise; 409 and 5xx are avoided, because the SDK retries
them silently for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.engine.checkpoints import WEIGHTS
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.promises import Promise
from posttrain.engine.records import routes as record_routes
from posttrain.engine.requests import body_of, need
from posttrain.engine.wire import read_forward_backward

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_LIMIT = 2**31  # bytes
CLIENT_CONFIG = {
    # Every forward_backward is one request, so that requests arrive in the order of their ids.
    "parallel_fwdbwd_chunks": False,
    "fwdbwd_max_chunk_len": 1_000_000,
    "fwdbwd_max_chunk_bytes_count": 1_000_000_000,
    "fwdbwd_dispatch_bytes_semaphore_size": 2_000_000_000,
    # Each sample in flight holds two connections: stay below common limits on open files.
    "sample_max_concurrent_requests": 400,
    "sample_join_sampling_session": True,
    # On one machine a lost request is a bug to be seen, not a fault to be retried.
    "sample_no_retries": True,
    "sample_enable_stuck_detection": False,
}


class Guard:
    """Turns away what no Tinker client sends.

    Any web page can make a browser send requests to the loopback interface. Such a request has
    the page's host name (DNS rebinding) or a form's content type; and it does not know the key.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None, api_key: str | None) -> None:
        self.app, self.hosts, self.api_key = app, hosts, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def refusal(self, request: Request) -> Response | None:
        if self.hosts is not None and request.url.hostname not in self.hosts:
            return detail(400, f"this server does not answer to host {request.url.hostname!r}")
        kind = request.headers.get("content-type", "").split(";")[0].strip()
        length = request.headers.get("content-length", "0")
        if length != "0" and kind not in ("application/json", "application/x-protobuf"):
            return detail(400, f"content type {kind!r} is neither JSON nor protobuf")
        if not length.isdigit() or int(length) > BODY_LIMIT:
            return detail(400, f"the body is larger than {BODY_LIMIT} bytes")
        key = request.headers.get("x-api-key", "")
        wrong = self.api_key is not None and not hmac.compare_digest(
            key.encode(), self.api_key.encode()
        )
        if wrong and not request.url.path.endswith("/healthz"):
            return detail(401, "the x-api-key header does not hold this engine's key")
        return None


def detail(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)


def promised(promise: Promise, **more: Any) -> JSONResponse:
    return JSONResponse({"request_id": promise.request_id, **more})


Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The routes that create, train and sample."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def routes(self) -> list[Route]:
        engine = self.engine
        posts: dict[str, Handler] = {
            "client/config": self.constant(CLIENT_CONFIG),
            "client/dynamic_config": self.constant({"refresh_interval_sec": 300}),
            "telemetry": self.constant({"status": "accepted"}),
            "create_session": self.create_session,
            "session_heartbeat": self.heartbeat,
            "sessions/{session_id}/finish": self.finish,
            "create_model": self.promising(engine.create_model),
            "load_weights": self.promising(engine.load_weights),
            "forward_backward": self.forward_backward,
            "optim_step": self.promising(engine.optim_step),
            "save_weights": self.promising(lambda body: engine.save_weights(body, WEIGHTS)),
            "save_weights_for_sampler": self.promising(engine.save_weights_for_sampler),
            "get_info": self.get_info,
            "create_sampling_session": self.create_sampling_session,
            "join_sampling_session": self.join_sampling_session,
            "asample": self.sample,
            "retrieve_future": self.retrieve_future,
            "cancel_future": self.constant({}),
        }
        self.joined: dict[str, int] = {}
        found = [Route(f"/api/v1/{path}", call, methods=["POST"]) for path, call in posts.items()]
        found += [Route(f"{prefix}/healthz", self.healthz) for prefix in ("", "/api/v1")]
        return found

    def constant(self, content: Mapping[str, Any]) -> Handler:
        async def handler(request: Request) -> Response:
            return JSONResponse(content)

        return handler

    def promising(self, method: Callable[[dict[str, Any]], Promise]) -> Handler:
        async def handler(request: Request) -> Response:
            return promised(method(await body_of(request)))

        return handler

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "largest_batch": self.engine.worker.largest_batch})

    async def create_session(self, request: Request) -> Response:
        session_id = self.engine.create_session(await body_of(request))
        return JSONResponse({"session_id": session_id, "type": "create_session"})

    async def heartbeat(self, request: Request) -> Response:
        self.engine.heartbeat(need(await body_of(request), "session_id", str))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish(self, request: Request) -> Response:
        self.engine.finish_session(request.path_params["session_id"])
        return Response(status_code=204)

    async def forward_backward(self, request: Request) -> Response:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UserError("compressed bodies are not supported")
        message = read_forward_backward(await request.body())
        return promised(self.engine.forward_backward(message), model_id=message.model_id)

    async def get_info(self, request: Request) -> Response:
        record = self.engine.client(await body_of(request)).record
        model = self.engine.models.find(record.base_model)
        return JSONResponse(
            {
                "type": "get_info",
                "model_id": record.run,
                "is_lora": True,
                "lora_rank": record.lora.rank,
                "model_name": record.base_model,
                "optimizer_config": {"type": "adamw"},
                "model_data": {
                    "arch": "qwen3",
                    "model_name": model.path,  # the SDK finds a sampler's tokenizer by it
                    "tokenizer_id": str(model.directory),
                },
            }
        )

    async def create_sampling_session(self, request: Request) -> Response:
        sampler_id = self.engine.create_sampling_session(await body_of(request))
        content = {"sampling_session_id": sampler_id, "type": "create_sampling_session"}
        return JSONResponse(content)

    async def join_sampling_session(self, request: Request) -> Response:
        """Numbers the processes that use one sampler, so that their request ids differ."""
        sampler_id = need(await body_of(request), "sampling_session_id", str)
        self.engine.sampler(sampler_id)
        self.joined[sampler_id] = self.joined.get(sampler_id, 0) + 1
        content = {"client_counter": self.joined[sampler_id], "type": "join_sampling_session"}
        return JSONResponse(content)

    async def sample(self, request: Request) -> Response:
        promise, count = self.engine.sample(await body_of(request))
        ids = [f"{promise.request_id}-{number}" for number in range(count)]
        return promised(promise, sample_sequence_ids=ids)

    async def retrieve_future(self, request: Request) -> Response:
        request_id = need(await body_of(request), "request_id", str)
        try:
            answer = await self.engine.promises.retrieve(request_id)
        except KeyError:
            text = f"there is no request {request_id!r}; was the engine restarted?"
            return JSONResponse({"error": text, "category": "user"})
        if answer is None:
            again = {"type": "try_again", "request_id": request_id, "queue_state": "active"}
            return JSONResponse(again, 408)
        return Response(answer.body, media_type=answer.media_type)


def application(engine: Engine, hosts: tuple[str, ...] | None, api_key: str | None) -> ASGIApp:
    """The whole server as an ASGI application.

    Args:
        hosts: host names it answers to; None for all.
        api_key: what clients must send; None where any will do.
    """

    async def user_error(request: Request, error: Exception) -> Response:
        return detail(400, str(error))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path} is not part of this engine"
        return detail(404, text if error.status_code in (404, 405) else error.detail)

    async def crash(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return detail(400, f"the engine failed: {type(error).__name__}: {error}")

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette raises what it has just answered with `crash`, for servers that log it.
        with contextlib.suppress(Exception):
            await app(scope, receive, send)

    app = Starlette(
        routes=Api(engine).routes() + record_routes(engine),
        exception_handlers={UserError: user_error, HTTPException: refused, Exception: crash},
    )
    return Guard(handle, hosts, api_key)


def listen(host: str, port: int) -> socket.socket:
    """An open port. Raises OSError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sees that it is TCP and turns Nagle's algorithm off, which
    # would hold every second packet back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


def serve(
    models: Mapping[str, Path],
    host: str,
    port: int,
    state: Path,
    api_key: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        models: name -> Hugging Face directory of each base model.
        host: the address to bind; one that other machines reach needs `api_key`.
        port: 0 chooses a free one.
        state: directory of the checkpoints; made if it does not exist.
        threads: for computing; None leaves the choice to PyTorch.
        dtype: float32, bfloat16 or auto: what matrices are multiplied in.
        ready: called with the server's URL once the port is open.

    Raises:
        UserError: an open address without a key.
        FileNotFoundError, ValueError: a model directory cannot be served.
        OSError: the port is taken.
    """
    if host not in LOOPBACK and not api_key:
        raise UserError(f"to listen on {host}, where other machines can connect, pass an API key")
    if threads is not None:
        torch.set_num_threads(threads)
    engine = Engine(models, state, device, dtype)
    listener = listen(host, port)
    hosts = LOOPBACK if host in LOOPBACK else None
    server = uvicorn.Server(
        uvicorn.Config(
            application(engine, hosts, api_key),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=75,  # longer than a poll, so that clients keep their connections
            timeout_graceful_shutdown=1,  # polls are held for longer; nobody is left to answer
            lifespan="off",
        )
    )
    if ready is not None:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}")
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        engine.worker.stop()

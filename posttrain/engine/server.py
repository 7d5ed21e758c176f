"""The engine behind HTTP: the Tinker API on this machine.

The event loop only parses and answers. Mistakes of the caller are answered with 400 and a
sentence in `detail`, or as a failed promise; 409 and 5xx are avoided, because the SDK retries
them silently for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from posttrain.engine.access import LOOPBACK, Guard, Keys, detail
from posttrain.engine.engine import Engine
from posttrain.engine.errors import UserError
from posttrain.engine.files import raise_file_limit
from posttrain.engine.heap import keep_pages
from posttrain.engine.routes.account import account_routes
from posttrain.engine.routes.checkpoints import checkpoint_routes
from posttrain.engine.routes.files import Files
from posttrain.engine.routes.sampling import sampling_routes
from posttrain.engine.routes.sessions import session_routes
from posttrain.engine.routes.training import training_routes

logger = logging.getLogger(__name__)

TIDY = 60.0  # seconds between two rounds of `Engine.tidy`
KEEP_ALIVE = 75  # seconds, longer than a poll, so that clients keep their connections


class Connection(H11Protocol):
    """A connection that may not stay open unused.

    Uvicorn closes one that is idle after a request, but waits forever for the first. Clients in
    a hurry open more connections than they come to need, and forget them.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self.close_unused)

    def close_unused(self) -> None:
        if self.cycle is None:
            self.transport.close()


def application(engine: Engine, hosts: tuple[str, ...] | None, api_key: str | None) -> ASGIApp:
    """The whole server as an ASGI application.

    Args:
        hosts: host names it answers to; None for all.
        api_key: what clients must send; None where any will do.
    """
    keys = Keys(api_key)
    files = Files(engine, keys)

    async def user_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, UserError)
        return detail(error.status, str(error))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path} is not part of this engine"
        return detail(404, text if error.status_code in (404, 405) else error.detail)

    async def gone(request: Request, error: Exception) -> Response:
        return detail(400, "the body is not complete")  # nobody is left to read this

    async def crash(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return detail(400, f"the engine failed: {type(error).__name__}: {error}")

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette raises what it has just answered with `crash`, for servers that log it.
        with contextlib.suppress(Exception):
            await app(scope, receive, send)

    app = Starlette(
        routes=[
            *account_routes(engine, keys, remote=hosts is None),
            *session_routes(engine, files),
            *training_routes(engine),
            *sampling_routes(engine),
            *checkpoint_routes(engine, files),
            *files.routes(),
        ],
        exception_handlers={
            UserError: user_error,
            HTTPException: refused,
            ClientDisconnect: gone,
            Exception: crash,
        },
    )
    app.router.redirect_slashes = False  # a path is right or it is not
    return Guard(handle, hosts, keys)


def listen(host: str, port: int) -> socket.socket:
    """An open port. Raises OSError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sees that it is TCP and turns Nagle's algorithm off, which
    # would hold every second packet back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Its connections inherit it: a client whose machine is gone is noticed some day.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


async def tidy(engine: Engine) -> None:
    while True:
        await asyncio.sleep(TIDY)
        engine.sessions.end_silent()
        engine.promises.sweep()
        try:
            await asyncio.to_thread(engine.tidy)
        except OSError as error:  # a full disk, say: the next round may succeed
            logger.warning("could not tidy up: %s", error)


async def run(server: uvicorn.Server, engine: Engine, listener: socket.socket) -> None:
    tidying = asyncio.create_task(tidy(engine))
    try:
        await server.serve(sockets=[listener])
    finally:
        tidying.cancel()


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
    raise_file_limit()
    keep_pages()
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
            http=Connection,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,  # polls are held for longer; nobody is left to answer
            lifespan="off",
        )
    )
    if ready is not None:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}")
    try:
        asyncio.run(run(server, engine, listener))
    finally:
        engine.close()

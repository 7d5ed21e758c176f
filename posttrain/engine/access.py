"""Who may call: the key, what is derived from it, and what only a web page sends.

Any web page can make a browser send requests to the loopback interface. Such a request carries
the page's origin, the page's host name (DNS rebinding), or the content type of a form.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.engine import limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?")
KINDS = ("application/json", "application/x-protobuf")
ENCODINGS = ("identity", "zstd")
USER, ORGANIZATION = "tml:user:local", "local"  # who the one user of an engine is
TOKEN_LIFE = 24 * 3600  # seconds; the SDK renews it after half of that
FILES = "/api/v1/files/"  # addresses under it carry a signature in place of the key


class Keys:
    """The engine's key, and a secret of this process that signs tokens and addresses."""

    def __init__(self, api_key: str | None) -> None:
        self.api_key = api_key
        self.secret = secrets.token_bytes(32)

    def accepts(self, credential: str) -> bool:
        """The key itself or a token made by `token`; anything where the engine has no key."""
        if self.api_key is None:
            return True
        if hmac.compare_digest(credential.encode(), self.api_key.encode()):
            return True
        body, _, signature = credential.rpartition(".")
        return self.signed(body, signature) and claims(body).get("exp", 0) > time.time()

    def token(self) -> str:
        """A JSON web token (RFC 7519, HS256) that says who the caller is."""
        now = int(time.time())
        head = {"alg": "HS256", "typ": "JWT"}
        says = {"sub": USER, "org_id": ORGANIZATION, "iat": now, "exp": now + TOKEN_LIFE}
        body = ".".join(encode(json.dumps(part).encode()) for part in (head, says))
        return f"{body}.{self.sign(body)}"

    def sign(self, text: str) -> str:
        return encode(hmac.digest(self.secret, text.encode(), hashlib.sha256))

    def signed(self, text: str, signature: str) -> bool:
        return hmac.compare_digest(self.sign(text).encode(), signature.encode())


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(body: str) -> dict[str, float]:
    """The claims of a token whose signature has been checked."""
    text = body.rpartition(".")[2]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


class Guard:
    """Turns away what no Tinker client sends, before anything else looks at it."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None, keys: Keys) -> None:
        """`hosts`: the names this server answers to; None for all."""
        self.app, self.hosts, self.keys = app, hosts, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def refusal(self, request: Request) -> Response | None:
        headers, path = request.headers, request.scope["path"]
        host = HOST.fullmatch(headers.get("host", ""))
        name = (host[1] or host[2]).lower() if host else None
        if name is None or (self.hosts is not None and name not in self.hosts):
            return detail(400, f"this server does not answer to host {headers.get('host')!r}")
        if "origin" in headers or headers.get("sec-fetch-site") == "cross-site":
            return detail(403, "this server does not answer to web pages")
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if request.method not in ("GET", "HEAD") and kind not in KINDS:
            return detail(400, f"content type {kind!r} is neither JSON nor protobuf")
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding not in ENCODINGS:
            known = ", ".join(ENCODINGS)
            return detail(400, f"content encoding {encoding!r} is not supported; known: {known}")
        open_to_all = path in ("/healthz", "/api/v1/healthz") or path.startswith(FILES)
        if not open_to_all and not self.keys.accepts(headers.get("x-api-key", "")):
            refused = detail(401, "the x-api-key header does not hold this engine's key")
            # Makes the SDK exchange its key for a new token, if it came with an old one.
            refused.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
            return refused
        return None


def detail(status: int, text: str) -> JSONResponse:
    """An error as the SDK shows it. Whatever a client sent must not make it fail or grow."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": clean[: limits.TEXT]}, status)

"""The engine is closed: against web pages, other machines, forged keys, and bodies that explode."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
import zstandard
from tinker.proto import tinker_public_pb2 as pb

from posttrain.engine import limits
from posttrain.engine.access import Keys
from posttrain.engine.bodies import PIECE, decompress, parse_object
from posttrain.engine.errors import BusyError, TooLargeError, UserError
from posttrain.engine.promises import Answer, Promises
from posttrain.engine.sessions import Sessions
from tests.conftest import KEY, start_engine

PROTO = {"content-type": "application/x-protobuf"}


@pytest.fixture
def http(engine_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine_url, headers={"x-api-key": KEY}, timeout=60) as client:
        yield client


# Keys and tokens -------------------------------------------------------------------------------


def test_tokens_open_what_the_key_opens(engine_url: str, http: httpx.Client) -> None:
    token = http.post("/api/v1/auth/token", json={}).json()["jwt"]
    url = f"{engine_url}/api/v1/get_server_capabilities"
    assert httpx.get(url, headers={"x-api-key": token}).status_code == 200
    head, claims, signature = token.split(".")
    says = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert says["exp"] - says["iat"] == 24 * 3600
    forged = base64.urlsafe_b64encode(json.dumps(says | {"exp": 10**12}).encode()).decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode()
    for wrong in (
        f"{head}.{forged}.{signature}",
        f"{none}.{claims}.",
        f"{head}.{claims}",
        "..",
        ".",
    ):
        refused = httpx.get(url, headers={"x-api-key": wrong})
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]


def test_tokens_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys("tml-secret")
    token = keys.token()
    assert keys.accepts(token)
    assert not Keys("tml-secret").accepts(token), "a token is for one process"
    later = time.time() + 24 * 3600 + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert not keys.accepts(token)
    assert keys.accepts("tml-secret")


# Web pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8888"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_requests_of_web_pages_are_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    for response in (
        http.post("/api/v1/create_session", json={}, headers=headers),
        http.get("/api/v1/sessions", headers=headers),
    ):
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.", "[::1", "a b", "", "@127.0.0.1"],
)
def test_other_hosts_are_refused(http: httpx.Client, host: str) -> None:
    response = http.post("/api/v1/create_session", json={}, headers={"host": host})
    assert response.status_code == 400


def test_a_body_without_length_does_not_slip_through(http: httpx.Client) -> None:
    """A form may come chunked, or be empty: neither says how long it is."""
    for content in (iter([b"{}"]), b""):
        kind = {"content-type": "text/plain"}
        assert http.post("/api/v1/create_session", content=content, headers=kind).status_code == 400


def test_preflights_are_not_answered(http: httpx.Client) -> None:
    response = http.options("/api/v1/create_session", headers={"content-type": "application/json"})
    assert response.status_code == 404
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_addresses_are_signed_and_expire(http: httpx.Client, service: tinker.ServiceClient) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=1).result()
    session = policy.model_id.split(":")[0]
    url = http.get(f"/api/v1/sessions/{session}/trace_export").json()["url"]
    assert httpx.get(url).status_code == 200
    expires = url.split("/files/")[1].split("/")[0]
    for wrong in (
        url.replace(expires, str(int(expires) + 1)),
        url.replace(session, "0" * len(session)),
        url.replace("/traces/", "/weights/a/b/c/"),
    ):
        assert httpx.get(wrong).status_code == 403


# Bodies ----------------------------------------------------------------------------------------


def test_long_bodies_are_refused_while_they_arrive(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(limits.JSON // 2**16 + 1):
            yield b" " * 2**16

    response = http.post(
        "/api/v1/optim_step", content=endless(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert response.json()["detail"] == f"the body is longer than {limits.JSON} bytes"


def test_zstd_is_read_to_a_bound() -> None:
    data = os.urandom(100_000)
    assert decompress(zstandard.compress(data), 10**6) == data
    bomb = zstandard.compress(bytes(2**28))
    assert len(bomb) < 2**16
    start = time.monotonic()
    with pytest.raises(TooLargeError, match="longer than 1000000 bytes"):
        decompress(bomb, 10**6)
    assert time.monotonic() - start < 20
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    ).compress(bytes(PIECE * 100))
    for wrong in (b"x", zstandard.compress(data)[:-1], zstandard.compress(data) + b"x", b""):
        with pytest.raises(UserError):
            decompress(wrong, 10**6)
    assert len(decompress(wide, 10**6)) == PIECE * 100


def test_compressed_training_data(http: httpx.Client, service: tinker.ServiceClient) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=1).result()
    message = pb.ForwardBackwardRequest(model_id=policy.model_id, seq_id=1, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = b"\1\0\0\0"
    target = datum.loss_fn_inputs["target_tokens"]
    target.dense, target.dtype = b"\2\0\0\0\0\0\0\0", pb.DTYPE_INT64
    target.shape.append(1)
    body, headers = zstandard.compress(message.SerializeToString()), PROTO
    promise = http.post(
        "/api/v1/forward_backward", content=body, headers=headers | {"content-encoding": "zstd"}
    ).json()
    answer = http.post("/api/v1/retrieve_future", json={"request_id": promise["request_id"]})
    output = pb.ForwardBackwardOutput.FromString(answer.content)
    assert output.metrics["loss:sum"] > 0
    refused = http.post(
        "/api/v1/forward_backward", content=body, headers=headers | {"content-encoding": "br"}
    )
    assert refused.json()["detail"] == (
        "content encoding 'br' is not supported; known: identity, zstd"
    )


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "not a number"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
    ],
)
def test_odd_json_is_refused(raw: bytes, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_object(raw)


def sparse(rows: int, width: int) -> pb.ForwardBackwardRequest:
    """A request of a few bytes that claims an enormous tensor."""
    message = pb.ForwardBackwardRequest(loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = b"\1\0\0\0" * rows
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.sparse_csr.crow_indices = bytes(8 * (rows + 1))
    tensor.dtype = pb.DTYPE_INT64
    tensor.shape.extend([rows, width])
    return message


@pytest.mark.parametrize(
    ("rows", "width", "complaint"),
    [(1, 2**40, "of shape"), (1, 5000, "5000 targets at one position; the limit is 4096")],
)
def test_sparse_bombs(
    http: httpx.Client, service: tinker.ServiceClient, rows: int, width: int, complaint: str
) -> None:
    policy = service.create_lora_training_client("posttrain/tiny", rank=1).result()
    message = sparse(rows, width)
    message.model_id, message.seq_id = policy.model_id, 1
    promise = http.post(
        "/api/v1/forward_backward", content=message.SerializeToString(), headers=PROTO
    ).json()
    answer = http.post("/api/v1/retrieve_future", json={"request_id": promise["request_id"]}).json()
    assert answer["category"] == "user"
    assert complaint in answer["error"]


ODD: list[tuple[str, dict[str, Any], str]] = [
    ("create_session", {"user_metadata": {"a": 1}}, "user_metadata['a'] must be a string"),
    ("create_session", {"user_metadata": {"a": "x" * 1001}}, "user_metadata holds more"),
    ("create_session", {"display_name": "x" * 1001}, "'display_name' is longer than 1000"),
    ("create_model", {"model_seq_id": -1}, "model_seq_id is -1"),
    ("create_model", {"model_seq_id": 10**9}, "model_seq_id is 1000000000"),
    ("sessions/search", {"limit": 0}, "limit is 0, not between 1 and 200"),
    ("sessions/search", {"owner": {"type": "x"}}, "unknown owner; known: own, accessible, user"),
    ("copy_weights", {"source_path": "tinker://../x/y"}, "name a destination_project_id"),
    ("weights_info", {"tinker_path": "/etc/passwd"}, "is not a checkpoint path"),
]


@pytest.mark.parametrize(("path", "body", "complaint"), ODD)
def test_values_that_would_hurt_others_later(
    http: httpx.Client,
    service: tinker.ServiceClient,
    path: str,
    body: dict[str, Any],
    complaint: str,
) -> None:
    session = service.holder.get_session_id()
    full = {"session_id": session, "base_model": "posttrain/tiny"} if path == "create_model" else {}
    response = http.post(f"/api/v1/{path}", json=full | body)
    assert response.status_code in (400, 413)
    assert complaint in response.json()["detail"]


def test_an_adapter_must_train_something(http: httpx.Client, service: tinker.ServiceClient) -> None:
    flags = dict.fromkeys(("train_attn", "train_mlp", "train_unembed"), False)
    session, number = service.holder.get_session_id(), 900
    body = {"session_id": session, "model_seq_id": number, "base_model": "posttrain/tiny"}
    promise = http.post("/api/v1/create_model", json=body | {"lora_config": flags}).json()
    answer = http.post("/api/v1/retrieve_future", json={"request_id": promise["request_id"]}).json()
    assert answer["error"].startswith("nothing to train")


# Amounts ---------------------------------------------------------------------------------------


def test_results_that_nobody_fetches_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEPT_BYTES", 1000)

    async def fill() -> tuple[int, int, list[bool]]:
        promises = Promises()
        made = [promises.new() for _ in range(30)]
        for promise in made[1:]:  # the first is still being computed
            promises.settle(promise, Answer(bytes(100)))
        return promises.kept, len(promises.by_id), [p.request_id in promises.by_id for p in made]

    kept, count, there = asyncio.run(fill())
    assert kept <= 1000
    assert count == 1 + kept // 100
    assert there[0]
    assert there[-1]
    assert not there[1]


def test_too_many_sessions_are_told_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSIONS", 2)
    ended: list[str] = []
    sessions = Sessions(tmp_path, lambda session: ended.append(session.record.session_id))
    first, _ = sessions.create(), sessions.create()
    with pytest.raises(BusyError, match="2 sessions are open"):
        sessions.create()
    sessions.finish(first, "success", None)
    sessions.create()
    assert ended == [first]
    assert len(Sessions(tmp_path, lambda session: None).records()) == 3


def test_an_open_engine_asks_for_its_key(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Bound to all addresses it answers to any host name, but to nobody without the key."""
    process, url = start_engine(tiny_model_dir, tmp_path, "--host", "0.0.0.0")
    try:
        local = url.replace("0.0.0.0", "127.0.0.1")
        host = {"host": "lab.example"}
        refused = httpx.get(f"{local}/api/v1/sessions", headers=host)
        assert refused.status_code == 401
        answer = httpx.get(f"{local}/api/v1/sessions", headers=host | {"x-api-key": KEY})
        assert answer.json() == {"sessions": []}
        service = tinker.ServiceClient(base_url=local, api_key=KEY)
        policy: Any = service.create_lora_training_client("posttrain/tiny", rank=1).result()
        assert service.holder.get_client_config().proto_compress_fwdbwd
        tokens = tinker.ModelInput.from_ints([1, 2])
        inputs: Any = {"target_tokens": [2, 3]}
        datum = tinker.Datum(model_input=tokens, loss_fn_inputs=inputs)
        assert policy.forward([datum], "cross_entropy").result().metrics["loss:sum"] > 0
    finally:
        process.kill()
        process.wait()

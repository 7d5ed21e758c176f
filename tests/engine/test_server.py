"""The HTTP layer by itself: who is answered, and that nothing sent to it breaks it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

from posttrain.engine.errors import UserError
from posttrain.engine.server import serve
from tests.conftest import KEY
from tests.engine.impatient import few_files
from tests.engine.nursery import Engine


@pytest.fixture
def http(engine_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine_url, headers={"x-api-key": KEY}, timeout=60) as client:
        yield client


def test_health_needs_no_key(engine_url: str) -> None:
    assert httpx.get(f"{engine_url}/healthz").json()["status"] == "ok"


@pytest.mark.parametrize("key", [None, "", "tml-wrong", "é"])
def test_without_the_key_nothing_is_done(engine_url: str, key: str | None) -> None:
    headers = {} if key is None else {b"x-api-key": key.encode()}
    response = httpx.post(f"{engine_url}/api/v1/create_session", json={}, headers=headers)
    assert response.status_code == 401


def test_other_host_names_are_refused(http: httpx.Client) -> None:
    """As a web page would send them after rebinding its name to the loopback address."""
    response = http.post("/api/v1/create_session", json={}, headers={"host": "evil.example:80"})
    assert response.status_code == 400
    assert "evil.example" in response.json()["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_content_types_of_web_forms_are_refused(http: httpx.Client, kind: str) -> None:
    response = http.post("/api/v1/create_session", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 400


def test_what_is_left_out_is_named(http: httpx.Client) -> None:
    response = http.post("/api/v1/retrieve_futures", json={})
    assert response.status_code == 404
    assert response.json()["detail"] == "POST /api/v1/retrieve_futures is not part of this engine"


BODIES: list[Any] = [b"", b"{", b"[]", b"null", b'{"model_id": 3}', b'{"model_id": "no"}', b"\xff"]
BODIES += [b'{"session_id": {}, "prompt": 1, "sampling_session_id": []}']
PATHS = "create_model load_weights optim_step save_weights save_weights_for_sampler get_info"
PATHS += " create_sampling_session join_sampling_session asample retrieve_future weights_info"


@pytest.mark.parametrize("path", PATHS.split())
def test_nonsense_is_a_400_or_a_failed_promise(http: httpx.Client, path: str) -> None:
    for body in BODIES:
        response = http.post(
            f"/api/v1/{path}", content=body, headers={"content-type": "application/json"}
        )
        if response.status_code == 200 and "request_id" in response.json():
            promise = {"request_id": response.json()["request_id"]}
            response = http.post("/api/v1/retrieve_future", json=promise)
        if response.status_code == 200:
            assert response.json()["category"] == "user", (body, response.text)
        else:
            assert response.status_code == 400
            assert "failed" not in response.json()["detail"], (body, response.text)


def test_a_body_that_is_not_protobuf_is_refused(http: httpx.Client) -> None:
    response = http.post(
        "/api/v1/forward_backward",
        content=b"\xff" * 20,
        headers={"content-type": "application/x-protobuf"},
    )
    assert response.status_code == 400
    assert "not a ForwardBackwardRequest" in response.json()["detail"]


def test_a_repeated_request_is_done_once(http: httpx.Client, service: tinker.ServiceClient) -> None:
    """The SDK sends a request again when its answer was lost."""
    policy = service.create_lora_training_client("posttrain/tiny", rank=2).result()
    body = {"model_id": policy.model_id, "seq_id": 77, "path": "once", "type": "save_weights"}
    first, again = (http.post("/api/v1/save_weights", json=body).json() for _ in range(2))
    assert first["request_id"] == again["request_id"]
    for _ in range(2):  # and a result may be fetched again
        answer = http.post("/api/v1/retrieve_future", json={"request_id": first["request_id"]})
        assert answer.json()["path"].endswith("/weights/once")


def test_an_open_address_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass an API key"):
        serve({}, "0.0.0.0", 0, tmp_path)


def test_serving_asks_for_files_and_keeps_pages(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever calls `serve`: the engine's own command, or `posttrain serve`."""
    with Engine(tiny_model_dir, tmp_path / "state", KEY, few_files) as engine:
        soft, hard = resource.prlimit(engine.pid, resource.RLIMIT_NOFILE)
        assert soft == (8192 if hard == resource.RLIM_INFINITY else min(8192, hard))
    called: list[str] = []
    monkeypatch.setattr("posttrain.engine.server.keep_pages", lambda: called.append("pages"))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        serve({"x": tmp_path}, "127.0.0.1", 0, tmp_path)
    assert called == ["pages"]


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("x=/nowhere", "no directory /nowhere"),
        ("x", "no directory x"),
        ("x={tmp}", "model_type 'gpt2'"),
    ],
)
def test_a_model_that_cannot_be_served_is_told_at_start(
    tmp_path: Path, model: str, complaint: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    start = time.monotonic()
    command = [sys.executable, "-m", "posttrain.engine", "--state", str(tmp_path / "state")]
    process = subprocess.run(
        [*command, "--model", model.format(tmp=tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode != 0
    assert complaint in process.stderr
    assert "Traceback" not in process.stderr
    assert time.monotonic() - start < 30

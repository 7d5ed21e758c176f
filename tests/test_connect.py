"""Which backend `connect()` chooses, and how soon it says that one cannot be used."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from posttrain.connect import BackendError, connect, shipped_models
from tests.conftest import KEY

module = sys.modules["posttrain.connect"]  # `posttrain.connect` itself is the function


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no URL, no proxy; a home of one's own."""
    for name in ("BASE_URL", "API_KEY", "CREDENTIAL_CMD"):
        monkeypatch.delenv(f"TINKER_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv(module.MARK, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the environment, and ends the engine that the test has made connect() start."""
    before = dict(os.environ)
    monkeypatch.setattr(module, "_embedded", None)
    yield
    if module._embedded is not None:
        module._embedded.process.terminate()
        module._embedded.process.wait()
    os.environ.clear()
    os.environ.update(before)


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def fails_soon(match: str) -> None:
    start = time.monotonic()
    with pytest.raises(BackendError, match=match):
        connect()
    assert time.monotonic() - start < 15


def test_a_url_is_used(
    engine_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", engine_url + "/")
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    service = connect()
    assert service.create_sampling_client(base_model="posttrain/tiny").result()
    assert f"posttrain: Tinker-compatible server at {engine_url}\n" == capsys.readouterr().out


def test_a_url_on_this_machine_is_not_sent_through_a_proxy(
    engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", engine_url)
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead_port()}")
    connect(quiet=True)
    assert "127.0.0.1" in os.environ["NO_PROXY"]


def test_a_dead_server_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{dead_port()}")
    fails_soon("cannot use the Tinker server at .*TINKER_BASE_URL.*ConnectError")


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1:8000", "ftp://x", "http://", "x"])
def test_an_impossible_url_is_told_at_once(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", url)
    fails_soon("not of the form http://host:port")


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"http://127.0.0.1:{dead_port()}"
    monkeypatch.setenv("TINKER_BASE_URL", "http://tinker.example")
    monkeypatch.setenv("http_proxy", proxy)
    fails_soon(f"through the proxy {proxy}; set NO_PROXY")


def test_a_sick_server_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sick(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Sick)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    fails_soon("HTTP status 503")
    server.shutdown()


def test_a_key_means_hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-some")
    monkeypatch.setattr("tinker.lib.base_url.DEFAULT_BASE_URL", f"http://127.0.0.1:{dead_port()}")
    fails_soon("hosted Tinker, because there is an API key")


def test_without_either_the_engine_is_started_once(
    embedded: None, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    service = connect(models={"posttrain/tiny": tiny_model_dir})
    assert "posttrain: embedded engine at http://127.0.0.1:" in capsys.readouterr().out
    policy = service.create_lora_training_client("posttrain/tiny", rank=2).result()
    sampler = service.create_sampling_client(base_model="posttrain/tiny").result()
    assert sampler.get_tokenizer().decode([0]) == policy.get_tokenizer().decode([0]) == "!"
    assert policy.save_state("x").result().path.startswith("tinker://")
    assert list((tmp_path / "home" / "runs").iterdir())
    assert tinker.RestClient().get_server_capabilities().result().supported_models

    engine = module._embedded
    assert engine is not None
    connect(quiet=True)  # again: the variables that were set do not look like the user's
    assert module._embedded is engine
    with pytest.raises(BackendError, match="runs without other"):
        connect(models={"other": tiny_model_dir})

    child = "from posttrain.connect import connect; connect()"
    found = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert f"embedded engine at {engine.url}" in found.stdout, found.stderr

    engine.process.kill()
    engine.process.wait()
    again = connect(models={"posttrain/tiny": tiny_model_dir}, quiet=True)
    assert again.create_sampling_client(base_model="posttrain/tiny").result()
    assert module._embedded is not engine


def test_an_engine_that_cannot_start_says_why(embedded: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BackendError, match=r"did not start.*model_type 'gpt2' is not supported"):
        connect(models={"x": tmp_path})


def test_without_models_there_is_nothing_to_embed(embedded: None) -> None:
    with pytest.raises(BackendError, match="holds no model"):
        connect(models={})


def test_shipped_models_are_found_by_their_config(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert shipped_models(tmp_path) == {"posttrain/base": tmp_path / "base"}

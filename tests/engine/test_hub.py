"""Models by directory or hub id, against a hub of our own on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from posttrain.engine.errors import UserError
from posttrain.engine.hub import directories, id_of, locate
from posttrain.engine.model import Decoder
from tests.conftest import write_tokenizer
from tests.engine.test_families import checkpoint

COMMIT = "0123456789" * 4
LOCATE = """
import sys, time
import huggingface_hub
from posttrain.engine.errors import UserError
from posttrain.engine.hub import locate
start = time.monotonic()
try:
    print(locate(sys.argv[1]))
except UserError as error:
    print(time.monotonic() - start)
    sys.exit(str(error))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as downloading a model takes: `folder/<org>/<model>/`."""

    folder: Path

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        parts = path.removeprefix("/api/models").strip("/").split("/")
        here = self.folder / "/".join(parts[:2])
        if len(parts) < 2 or not here.is_dir():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/api/"):
            names = sorted(file.name for file in here.iterdir())
            tree = [
                {"type": "file", "path": name, "size": (here / name).stat().st_size, "oid": name}
                for name in names
            ]
            info = {"id": "/".join(parts[:2]), "sha": COMMIT}
            info_and_files = {**info, "siblings": [{"rfilename": name} for name in names]}
            self.answer(json.dumps(tree if "tree" in parts else info_and_files).encode())
        else:
            self.answer((here / parts[-1]).read_bytes())

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub holds: a sharded model with much that must not be downloaded; one in pickles."""
    folder = tmp_path_factory.mktemp("hub")
    good = folder / "lab/tiny-llama"
    checkpoint(good, "llama 3", shard="20KB")
    write_tokenizer(good)
    for name in ("modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors", "x.pth"):
        (good / name).write_bytes(b"not to be downloaded")
    pickled = folder / "lab/pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Here", (Hub,), {"folder": folder})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(model: str, url: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`locate` in a process of its own: huggingface_hub reads its settings when imported."""
    mine = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", LOCATE, model],
        env={**os.environ, **mine, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_model_is_downloaded_without_code_and_pickles(
    url: str, folder: Path, tmp_path: Path
) -> None:
    done = ask("lab/tiny-llama", url, tmp_path)
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip())
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert all(name.endswith((".json", ".jinja", ".safetensors")) for name in names)
    assert "consolidated.safetensors" not in names
    assert id_of(directory) == "lab/tiny-llama"
    ours, theirs = Decoder.load(directory), Decoder.load(folder / "lab/tiny-llama")
    assert ours.lm_head.weight.equal(theirs.lm_head.weight)
    offline = ask("lab/tiny-llama", "http://127.0.0.1:9", tmp_path)  # nobody listens on port 9
    assert offline.stdout == done.stdout
    switched_off = ask("lab/tiny-llama", url, tmp_path, HF_HUB_OFFLINE="1")
    assert switched_off.stdout == done.stdout
    next(directory.glob("model-00002*")).unlink()
    partial = ask("lab/tiny-llama", "http://127.0.0.1:9", tmp_path)
    assert partial.returncode == 1
    assert "the hub cannot be asked for it" in partial.stderr


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("lab/nothing", "the hub shows no model lab/nothing to you; a private or gated one"),
        ("lab/pickled", "lab/pickled on the hub has no config.json with model.safetensors or"),
    ],
)
def test_a_model_that_is_not_there_is_named(
    url: str, tmp_path: Path, model: str, said: str
) -> None:
    done = ask(model, url, tmp_path)
    assert done.returncode == 1
    assert f"there is no directory {model} here, and {said}" in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_a_hub_that_never_answers_costs_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = ask("lab/tiny", f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert float(done.stdout) < 30  # 5 to wait for the answer, and some on a busy machine
    assert done.returncode == 1
    assert "there is no directory lab/tiny here, and the hub cannot be asked for it" in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_a_directory_is_never_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lab/model", "a=b"):
        (tmp_path / name).mkdir(parents=True)
    found = directories(["lab/model", "mine=lab/model", "a=b", str(tmp_path)])
    lab = Path("lab/model")
    assert found == {"model": lab, "mine": lab, "a=b": Path("a=b"), tmp_path.name: tmp_path}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["x="], "'x=' is not of the form DIR, ORG/MODEL or NAME=either"),
        (["=docs"], "'=docs' is not of the form"),
        (["docs", "docs=posttrain"], "names 'docs' twice"),
        (["a/b/c"], "no directory a/b/c, and it is not a hub id of the form ORG/MODEL"),
        (["../x"], "no directory ../x, and it is not a hub id"),
    ],
)
def test_what_cannot_be_a_model_is_refused(entries: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        directories(entries)


def test_nobody_else_provides_our_models() -> None:
    with pytest.raises(UserError, match="posttrain/huge is not shipped here"):
        locate("posttrain/huge")

"""Which Tinker: `connect()` returns a `tinker.ServiceClient` for one of three backends.

1. `TINKER_BASE_URL` is set: that Tinker-compatible server.
2. A key is there (`TINKER_API_KEY`, or stored by `tinker auth login`): hosted Tinker.
3. Otherwise: the embedded engine, started as a process of its own over the shipped models.

Tokenizers, without network: on the embedded engine a base model goes by a short name such as
`posttrain/base`, but towards the SDK its full name is its absolute directory, which is all that
`get_tokenizer()` of a training or sampling client needs. The client that `connect()` returns
translates short names where the SDK would load a tokenizer by the name it was given. No
environment variable of `transformers` or `datasets` is touched.

The SDK imports torch, which takes seconds; so it is imported here only where a client is made, and
`posttrain --help` need not wait for it.
"""

from __future__ import annotations

import atexit
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from posttrain.engine.files import raise_file_limit

if TYPE_CHECKING:
    import tinker

REPOSITORY = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROBE = 5.0  # seconds a server may take to answer at all
START = 90.0  # seconds the embedded engine may take to start: it imports torch
MARK = "POSTTRAIN_ENGINE_URL"  # set beside TINKER_BASE_URL when it was not the user who set that


class BackendError(RuntimeError):
    """No Tinker backend can be used; the text says what happened and what to do."""


@dataclass
class Embedded:
    """The engine that this process has started."""

    process: subprocess.Popen[bytes]
    url: str
    key: str
    models: dict[str, Path]


_embedded: Embedded | None = None
_starting = threading.Lock()


def shipped_models(folder: Path = REPOSITORY / "models") -> dict[str, Path]:
    """The models that come with this repository: `posttrain/<folder name>` -> its directory."""
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    return {f"posttrain/{directory.name}": directory for directory in found}


def connect(
    user_metadata: dict[str, str] | None = None,
    *,
    models: Mapping[str, Path] | None = None,
    quiet: bool = False,
) -> tinker.ServiceClient:
    """A client of the backend that this module's first lines describe. Prints which one it is.

    Args:
        user_metadata: kept with the session.
        models: name -> directory, for the embedded engine; the shipped models by default.
        quiet: do not print.

    Raises:
        BackendError: the server does not answer, or the engine does not start. Within seconds,
            where the SDK would retry in silence for minutes.
    """
    import tinker
    from tinker.auth import tinker_has_credentials
    from tinker.lib.base_url import DEFAULT_BASE_URL

    from posttrain.engine_client import EmbeddedServiceClient

    raise_file_limit()
    url = os.environ.get("TINKER_BASE_URL", "").rstrip("/")
    if url and url != os.environ.get(MARK):
        check_url(url)
        spare_proxy(url)
        probe(url, "set by TINKER_BASE_URL")
        say(quiet, f"Tinker-compatible server at {url}")
        # Compatible servers may not ask for a key, but the SDK insists on having one.
        key = None if tinker_has_credentials() else "tml-none"
        return tinker.ServiceClient(user_metadata, base_url=url, api_key=key)
    if not url and tinker_has_credentials():
        probe(DEFAULT_BASE_URL, "hosted Tinker, because there is an API key")
        say(quiet, f"hosted Tinker at {DEFAULT_BASE_URL}")
        return tinker.ServiceClient(user_metadata)
    if url and _embedded is None and answers(url):
        # Inherited: a parent process has started the engine.
        key, names = os.environ["TINKER_API_KEY"], full_names(models or shipped_models())
    else:
        embedded = ensure_engine(models)
        url, key, names = embedded.url, embedded.key, full_names(embedded.models)
    say(quiet, f"embedded engine at {url}, models: {', '.join(names)}")
    return EmbeddedServiceClient(names, user_metadata=user_metadata, base_url=url, api_key=key)


def say(quiet: bool, text: str) -> None:
    if not quiet:
        print(f"posttrain: {text}", flush=True)


def full_names(models: Mapping[str, Path]) -> dict[str, str]:
    """Short name -> the name under which the SDK finds the tokenizer."""
    from posttrain.engine.models import Model

    return {name: Model.full_name(directory) for name, directory in models.items()}


def check_url(url: str) -> None:
    """Raises BackendError where the SDK would retry an impossible address for minutes."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BackendError(
            f"TINKER_BASE_URL is {url!r}, which is not of the form http://host:port or "
            f"https://host. Set it so, or unset it to use the embedded engine."
        )


def probe(url: str, origin: str) -> None:
    """Raises BackendError unless a server that is well answers at `url` within seconds."""
    try:
        status = httpx.get(
            f"{url}/api/v1/healthz", timeout=PROBE, follow_redirects=True
        ).status_code
    except Exception as error:  # among them ImportError, for a proxy of a kind httpx lacks
        reason = f"{type(error).__name__}: {error}"
    else:
        if status < 500:
            return
        reason = f"it answers with HTTP status {status}"
    proxies = (
        {}
        if urllib.request.proxy_bypass(urlsplit(url).hostname or "")
        else (urllib.request.getproxies())
    )
    proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all")
    hint = f" It was tried through the proxy {proxy}; set NO_PROXY to avoid that." if proxy else ""
    raise BackendError(
        f"cannot use the Tinker server at {url} ({origin}): {reason}.{hint} Start or correct that "
        "server; without TINKER_BASE_URL and without a key the embedded engine is used."
    )


def answers(url: str) -> bool:
    """Whether an engine is alive at `url`."""
    spare_proxy(url)
    try:
        return httpx.get(f"{url}/healthz", timeout=PROBE).status_code == 200
    except httpx.HTTPError:
        return False


def spare_proxy(url: str) -> None:
    """Keep connections to this machine away from any proxy."""
    if urlsplit(url).hostname not in LOOPBACK:
        return
    for variable in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(variable, "").split(",") if host]
        missing = [host for host in LOOPBACK[:2] if host not in hosts]
        if missing and hosts != ["*"]:
            os.environ[variable] = ",".join(hosts + missing)


def ensure_engine(models: Mapping[str, Path] | None) -> Embedded:
    """The running engine of this process, or a new one."""
    global _embedded
    with _starting:
        if _embedded is not None and _embedded.process.poll() is None:
            for name, directory in (models or {}).items():
                if _embedded.models.get(name) != Path(directory).resolve():
                    raise BackendError(
                        f"the engine of this process runs without {name} at {directory}; name all "
                        "models in the first connect(), or restart Python"
                    )
            return _embedded
        chosen = shipped_models() if models is None else models
        if not chosen:
            raise BackendError(
                f"{REPOSITORY / 'models'} holds no model, so there is nothing to embed. Clone the "
                "whole repository, pass connect(models={name: directory}), or set TINKER_API_KEY."
            )
        _embedded = start_engine({name: Path(path).resolve() for name, path in chosen.items()})
        return _embedded


def start_engine(models: dict[str, Path]) -> Embedded:
    """Start `python -m posttrain.engine` on a free port, and point the SDK at it."""
    home = Path(os.environ.get("POSTTRAIN_HOME") or "~/.posttrain").expanduser().resolve()
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"engine-{os.getpid()}.log"
    key = f"tml-local-{secrets.token_hex(16)}"
    # -P: a file of the working directory must not shadow a module of the engine's.
    command = [sys.executable, "-P", "-m", "posttrain.engine", "--parent", str(os.getpid())]
    # The shipped models are small: a CPU runs them as fast, and to the same bits every time.
    command += ["--state", str(home), "--device", "cpu"]
    for name, directory in models.items():
        command += ["--model", f"{name}={directory}"]
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "POSTTRAIN_ENGINE_KEY": key}
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        ready = Path(folder) / "url"
        process = subprocess.Popen(
            [*command, "--ready", str(ready)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C stops the notebook's loop, not the engine
        )
        url = await_ready(process, ready, log)
    atexit.register(process.terminate)
    threading.Thread(target=report_death, args=(process, log), daemon=True).start()
    spare_proxy(url)
    os.environ.update(
        {"TINKER_BASE_URL": url, MARK: url, "TINKER_API_KEY": key, "TINKER_TELEMETRY": "0"}
    )
    if not answers(url):
        process.kill()
        raise BackendError(f"the embedded engine does not answer at {url}; its log is {log}")
    return Embedded(process, url, key, models)


def await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    """The URL that the engine writes once it serves."""
    end = time.monotonic() + START
    while not ready.exists():
        if process.poll() is not None:
            raise BackendError(f"the embedded engine did not start: {tail(log)}")
        if time.monotonic() > end:
            process.kill()
            raise BackendError(f"the embedded engine did not start in {START:.0f} s: {tail(log)}")
        time.sleep(0.02)
    return ready.read_text()


def report_death(process: subprocess.Popen[bytes], log: Path) -> None:
    """Say so when the engine ends by itself: the SDK would retry in silence for minutes."""
    code = process.wait()
    if code not in (0, -15):
        print(
            f"posttrain: the embedded engine has ended (exit code {code}); call connect() again, "
            f"and load your last checkpoint. {tail(log)}",
            file=sys.stderr,
            flush=True,
        )


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it said nothing'} (log: {log})"

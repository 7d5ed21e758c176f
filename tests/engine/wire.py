"""A client that speaks the engine's protocol by itself.

The SDK waits for an engine that has died in silence, for minutes. Here that is an error at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Self

import httpx
import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from posttrain.engine.wire import NUMPY
from tests.conftest import KEY

MODEL = "posttrain/tiny"
HEADERS = {"x-api-key": KEY}
GONE = (httpx.TransportError, OSError)  # what is raised when the engine is killed


class RefusedError(Exception):
    """The engine's answer is an error; the text is what it says."""


class Client:
    """One session. `send` gives the id of a result, `result` waits for it."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.Client(base_url=url, headers=HEADERS, timeout=timeout, limits=limits)
        self.session = self.post("create_session")["session_id"]
        self.seq_id = 0
        self.made = 0
        self.run = ""
        self.closed = threading.Event()
        threading.Thread(target=self.live, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.http.close()

    def live(self) -> None:
        """Give signs of life, as the SDK does, until this client or the engine is gone."""
        with contextlib.suppress(*GONE, RuntimeError):
            while not self.closed.wait(1.0):
                self.http.post("/api/v1/session_heartbeat", json={"session_id": self.session})

    def post(self, route: str, **body: Any) -> Any:
        return self.answer(self.http.post(f"/api/v1/{route}", json=body))

    def answer(self, response: httpx.Response) -> Any:
        if response.status_code != 200:
            raise RefusedError(response.json()["detail"])
        if response.headers["content-type"] != "application/json":
            return response.content
        content = response.json()
        if "error" in content:
            raise RefusedError(content["error"])
        return content

    def result(self, request_id: str) -> Any:
        while True:
            response = self.http.post("/api/v1/retrieve_future", json={"request_id": request_id})
            if response.status_code != 408:
                return self.answer(response)

    def send(self, route: str, **body: Any) -> str:
        """A request of the training client."""
        self.seq_id += 1
        return self.post(route, model_id=self.run, seq_id=self.seq_id, **body)["request_id"]

    def train(self, path: str | None = None, rank: int = 4) -> str:
        """A new training client: fresh, or from a checkpoint with its optimizer. Its run."""
        body: dict[str, Any] = {"session_id": self.session, "model_seq_id": self.made}
        self.made += 1
        if path is None:
            lora = {"rank": rank, "seed": 1}
            promise = self.post("create_model", **body, base_model=MODEL, lora_config=lora)
        else:
            promise = self.post("load_weights", **body, path=path, optimizer=True)
        self.run = self.result(promise["request_id"])["model_id"]
        return self.run

    def forward(self, number: int, *, backward: bool = False) -> str:
        """Score, or train on, data that follow from the number."""
        self.seq_id += 1
        tokens = np.random.default_rng(number).integers(0, 256, 12)
        message = pb.ForwardBackwardRequest(
            model_id=self.run,
            seq_id=self.seq_id,
            loss_fn="cross_entropy",
            forward_only=not backward,
        )
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = tokens[:-1].astype("<i4").tobytes()
        target = datum.loss_fn_inputs["target_tokens"]
        target.dense = tokens[1:].astype(NUMPY[pb.DTYPE_INT64]).tobytes()
        target.dtype = pb.DTYPE_INT64
        target.shape.append(11)
        answer = self.http.post(
            "/api/v1/forward_backward",
            content=message.SerializeToString(),
            headers={"content-type": "application/x-protobuf"},
        )
        return self.answer(answer)["request_id"]

    def step(self, number: int, rate: float = 0.01) -> list[str]:
        """Submit the optimizer step of this number."""
        first = self.forward(number, backward=True)
        adam = {"learning_rate": rate, "weight_decay": 0.01}
        return [first, self.send("optim_step", adam_params=adam)]

    def bits(self) -> tuple[bytes, bytes]:
        """What the weights compute, before and after a step that depends on the optimizer."""
        before = self.result(self.forward(100))
        self.step(101)
        return before, self.result(self.forward(100))

    def save(self, name: str, **more: Any) -> str:
        """Submit a `save_state`."""
        return self.send("save_weights", path=name, **more)

    def snapshot(self) -> str:
        """A sampler of the present weights."""
        return self.result(self.send("save_weights_for_sampler"))["sampling_session_id"]

    def base_sampler(self) -> str:
        made = self.post("create_sampling_session", session_id=self.session, base_model=MODEL)
        return made["sampling_session_id"]

    def sample(self, sampler: str, max_tokens: int = 8, **more: Any) -> str:
        self.seq_id += 1
        return self.post(
            "asample",
            sampling_session_id=sampler,
            seq_id=self.seq_id,
            prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
            sampling_params={"max_tokens": max_tokens, "seed": 1, "stop": [], **more},
        )["request_id"]

    def delete(self, path: str) -> None:
        run, segment, name = path.removeprefix("tinker://").split("/")
        place = f"/api/v1/training_runs/{run}/checkpoints/{segment}/{name}"
        answer = self.http.delete(place, headers={"content-type": "application/json"})
        assert answer.status_code == 204, answer.text

    def finish(self) -> None:
        self.http.post(f"/api/v1/sessions/{self.session}/finish", json={})

    def health(self) -> dict[str, Any]:
        return self.http.get("/healthz").json()


def until(condition: Any, seconds: float = 60.0, name: Any = lambda: "it did not happen") -> None:
    """Wait for what must become true, or say what is the case instead."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, name()
        time.sleep(0.02)

"""Any body on any route: no crash, no hang, no 5xx, and a good client beside it notices nothing.

`FUZZ_BODIES` sets how many are sent (400
by default; 10,000 take some minutes).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route
from tinker import types

from posttrain.engine.access import Keys
from posttrain.engine.engine import Engine
from posttrain.engine.routes.account import account_routes
from posttrain.engine.routes.checkpoints import checkpoint_routes
from posttrain.engine.routes.files import Files
from posttrain.engine.routes.sampling import sampling_routes
from posttrain.engine.routes.sessions import session_routes
from posttrain.engine.routes.training import training_routes
from tests.conftest import KEY, start_engine
from tests.engine.bodies import MODEL, Victim, requests

BODIES = int(os.environ.get("FUZZ_BODIES", "400"))
PATIENCE = 60.0  # seconds for one answer, on a machine that may be busy


def all_routes(directory: Path) -> list[tuple[str, str]]:
    """(method, path template) of everything the engine serves, asked of the engine itself."""
    engine = Engine({}, directory)
    files = Files(engine, Keys(None))
    routes: list[Route] = [
        *account_routes(engine, Keys(None), remote=False),
        *session_routes(engine, files),
        *training_routes(engine),
        *sampling_routes(engine),
        *checkpoint_routes(engine, files),
        *files.routes(),
    ]
    engine.worker.stop()
    found = {(method, route.path) for route in routes for method in route.methods or ()}
    return sorted(pair for pair in found if pair[0] != "HEAD")


@pytest.fixture(scope="module")
def victim(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    state = tmp_path_factory.mktemp("fuzz")
    process, url = start_engine(tiny_model_dir, state)
    service = tinker.ServiceClient(base_url=url, api_key=KEY)
    policy = service.create_lora_training_client(MODEL, rank=2, seed=0).result()
    sampler = service.create_sampling_client(base_model=MODEL).result()
    tuned = policy.save_weights_and_get_sampling_client().result()
    ids = {
        "session_id": policy.model_id.split(":")[0],
        "model_id": policy.model_id,
        "path": policy.save_state("kept").result().path,
        "sampler_path": policy.save_weights_for_sampler("kept").result().path,
        "samplers": [sampler._sampling_session_id, tuned._sampling_session_id],
    }
    policy.save_weights_external("kept").result()
    headers = {"x-api-key": KEY}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as http:
        yield Victim(url, all_routes(tmp_path_factory.mktemp("routes")), ids, http)
    assert process.poll() is None, "the engine has crashed"
    process.terminate()
    process.wait()


def check(response: httpx.Response, request: dict[str, Any]) -> None:
    assert response.status_code < 500, (request, response.text)
    assert response.status_code != 409, request
    if response.status_code >= 400 and response.status_code != 408:
        assert "engine failed" not in response.json()["detail"], (request, response.text)


class GoodClient(threading.Thread):
    """Trains, samples and lists all the while, and compares with what it got when alone."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.service = tinker.ServiceClient({"good": "client"}, base_url=url, api_key=KEY)
        self.rest = tinker.RestClient(base_url=url, api_key=KEY)
        self.policy: Any = self.service.create_lora_training_client(MODEL, rank=2, seed=7).result()
        self.sampler = self.policy.save_weights_and_get_sampling_client().result()
        self.path = self.policy.save_state("good").result().path
        self.expected, self.rounds, self.error = self.once(), 0, ""
        self.stopped = threading.Event()

    def once(self) -> list[Any]:
        tokens = types.ModelInput.from_ints([1, 2, 3])
        inputs: Any = {"target_tokens": [2, 3, 4]}
        datum = types.Datum(model_input=tokens, loss_fn_inputs=inputs)
        params = types.SamplingParams(max_tokens=8, seed=5, temperature=2.0, stop=[])
        backward = self.policy.forward_backward([datum], "cross_entropy")
        norm = self.policy.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics
        sampled = self.sampler.sample(tokens, 2, params).result()
        # The SDK validates strictly: one bad record would make the whole list unreadable.
        self.rest.list_training_runs().result()
        self.rest.list_user_checkpoints().result()
        self.rest.list_sessions().result()
        self.rest.search_sessions(types.SessionSearchRequest()).result()
        run = self.rest.get_training_run(self.policy.model_id).result()
        return [
            backward.result().metrics,
            norm,
            [sequence.tokens for sequence in sampled.sequences],
            run.last_checkpoint.tinker_path if run.last_checkpoint else None,
        ]

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                found = self.once()
            except Exception as error:
                self.error = repr(error)
                return
            if found != self.expected:
                self.error = f"{found} instead of {self.expected}"
                return
            self.rounds += 1


@pytest.mark.filterwarnings("ignore")
def test_no_body_on_any_route_does_harm(victim: Victim) -> None:
    good = GoodClient(victim.url)
    good.start()

    @settings(
        max_examples=BODIES,
        deadline=None,
        derandomize="FUZZ_BODIES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def send(data: st.DataObject) -> None:
        request = data.draw(requests(victim))
        start = time.monotonic()
        response = victim.http.request(**request)
        check(response, request)
        promised = response.status_code == 200 and "request_id" in response.text
        if promised and "/retrieve_future" not in request["url"]:
            while True:
                promise = {"request_id": response.json()["request_id"]}
                answer = victim.http.post("/api/v1/retrieve_future", json=promise)
                check(answer, request)
                if answer.status_code != 408:
                    break
            if answer.headers["content-type"] == "application/json":
                assert answer.json().get("category") != "server", (request, answer.text)
        victim.sent += 1
        victim.kinds[response.status_code] = victim.kinds.get(response.status_code, 0) + 1
        victim.slowest = max(victim.slowest, time.monotonic() - start)
        assert not good.error, (request, good.error)

    try:
        send()
    finally:
        good.stopped.set()
        good.join(PATIENCE)
    print(
        f"{victim.sent} bodies, {victim.kinds}, slowest {victim.slowest:.2f} s, {good.rounds} good"
    )
    assert good.error == ""
    assert good.rounds > 0
    assert victim.sent >= BODIES
    assert victim.kinds[200] > BODIES // 10, "too few bodies got past the first check"
    assert victim.slowest < PATIENCE
    assert GoodClient(victim.url).expected[:3] == good.expected[:3], "a new client finds it changed"

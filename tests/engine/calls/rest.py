"""What each method of RestClient and AdminClient must answer."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from tests.conftest import KEY
from tests.engine.calls.world import (
    DATA,
    GREEDY,
    MODEL,
    PROMPT,
    Call,
    World,
    answers,
    check_models,
    session_of,
)


@answers(tinker.RestClient, "get_server_capabilities")
def capabilities(world: World, call: Call) -> None:
    check_models(call(world.rest).supported_models)


@answers(tinker.RestClient, "list_training_runs")
def list_training_runs(world: World, call: Call) -> None:
    """Newest first, in pages that neither overlap nor leave gaps."""
    new = [world.policy().model_id for _ in range(3)][::-1]
    first = call(world.rest, limit=2, offset=0)
    second = call(world.rest, limit=2, offset=2)
    found = [run.training_run_id for page in (first, second) for run in page.training_runs]
    assert found[:3] == new
    assert len(set(found)) == 4
    assert first.cursor.total_count >= 4
    assert call(world.rest, project_id="nobody").training_runs == []
    mine = call(world.rest, project_id="lab", access_scope="accessible").training_runs
    assert mine[0].training_run_id == new[0]


@answers(tinker.RestClient, "get_training_run")
def get_training_run(world: World, call: Call) -> None:
    policy = world.policy(user_metadata={"x": "y"})
    path = policy.save_state(world.name()).result().path
    run = call(world.rest, policy.model_id)
    assert (run.base_model, run.lora_rank, run.user_metadata) == (MODEL, 4, {"x": "y"})
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert run.last_sampler_checkpoint is None
    assert abs((run.last_request_time - datetime.now(UTC)).total_seconds()) < 60
    with pytest.raises(tinker.BadRequestError, match="no training run"):
        call(world.rest, "nobody:train:0")


@answers(tinker.RestClient, "get_training_run_by_tinker_path")
def get_training_run_by_tinker_path(world: World, call: Call) -> None:
    policy = world.policy()
    path = policy.save_state(world.name()).result().path
    assert call(world.rest, path).training_run_id == policy.model_id


@answers(tinker.RestClient, "get_weights_info_by_tinker_path")
def get_weights_info(world: World, call: Call) -> None:
    policy = world.policy(train_mlp=False)
    found = call(world.rest, policy.save_state(world.name()).result().path)
    assert (found.base_model, found.is_lora, found.lora_rank) == (MODEL, True, 4)
    assert (found.train_attn, found.train_mlp, found.train_unembed) == (True, False, True)


@answers(tinker.RestClient, "list_checkpoints")
def list_checkpoints(world: World, call: Call) -> None:
    policy = world.policy()
    policy.save_state("a").result()
    policy.save_weights_for_sampler("b").result()
    policy.save_weights_external("c").result()
    found = call(world.rest, policy.model_id).checkpoints
    kinds = ("external_weights/c", "sampler_weights/b", "weights/a")
    assert tuple(checkpoint.checkpoint_id for checkpoint in found) == kinds
    assert [c.checkpoint_type for c in found] == ["external", "sampler", "training"]


@answers(tinker.RestClient, "list_user_checkpoints")
def list_user_checkpoints(world: World, call: Call) -> None:
    paths = [world.policy().save_state("x").result().path for _ in range(3)][::-1]
    pages = [call(world.rest, limit=2, offset=offset) for offset in (0, 2)]
    found = [checkpoint.tinker_path for page in pages for checkpoint in page.checkpoints]
    assert found[:3] == paths
    assert pages[0].cursor.total_count >= 3


@answers(tinker.RestClient, "delete_checkpoint", "delete_checkpoint_from_tinker_path")
def delete_checkpoint(world: World, call: Call) -> None:
    policy = world.policy()
    path = policy.save_weights_for_sampler("x").result().path
    sampler = world.service.create_sampling_client(model_path=path).result()
    try:
        call(world.rest, path)
    except TypeError:
        call(world.rest, policy.model_id, "sampler_weights/x")
    assert world.rest.list_checkpoints(policy.model_id).result().checkpoints == []
    with pytest.raises(tinker.RequestFailedError, match="does not exist"):
        sampler.sample(PROMPT, 1, GREEDY).result()


@answers(
    tinker.RestClient,
    "publish_checkpoint_from_tinker_path",
    "unpublish_checkpoint_from_tinker_path",
)
def publish(world: World, call: Call) -> None:
    policy = world.policy()
    path = policy.save_state("x").result().path

    def public() -> bool:
        return world.rest.list_checkpoints(policy.model_id).result().checkpoints[0].public

    world.rest.publish_checkpoint_from_tinker_path(path).result()
    assert public()
    assert call(world.rest, path) is None
    world.rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not public()


@answers(tinker.RestClient, "set_checkpoint_ttl_from_tinker_path")
def set_ttl(world: World, call: Call) -> None:
    """What has expired is neither listed nor loaded."""
    policy = world.policy()
    path = policy.save_state("x").result().path
    for ttl in (3600, None):
        call(world.rest, path, ttl)
        (found,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
        assert (found.expires_at is None) == (ttl is None)
    call(world.rest, path, 1)
    time.sleep(1.1)
    assert world.rest.list_checkpoints(policy.model_id).result().checkpoints == []
    with pytest.raises(tinker.RequestFailedError, match="has expired"):
        world.service.create_training_client_from_state(path).result()


@answers(tinker.RestClient, "get_external_weights_urls")
def external_urls(world: World, call: Call) -> None:
    policy = world.policy()
    found = call(world.rest, policy.save_weights_external("x").result().path)
    assert sorted(found.urls) == ["adapter_config.json", "adapter_model.safetensors"]
    assert timedelta(minutes=50) < found.expires - datetime.now(UTC) < timedelta(minutes=70)
    config = httpx.get(found.urls["adapter_config.json"]).json()
    assert (config["r"], config["lora_alpha"]) == (4, 32.0)
    forged = found.urls["adapter_config.json"].replace("adapter_config", "adapter_model")
    assert httpx.get(forged).status_code == 403
    with pytest.raises(ValueError, match="only accepts external weights"):
        call(world.rest, policy.save_state("y").result().path)


@answers(tinker.RestClient, "copy_weights")
def rest_copy(world: World, call: Call) -> None:
    source = world.trained().save_weights_for_sampler(world.name()).result().path
    copied = call(world.rest, source, "archive")
    world.rest.delete_checkpoint_from_tinker_path(source).result()
    sampler = world.service.create_sampling_client(model_path=copied).result()
    assert len(sampler.sample(PROMPT, 1, GREEDY).result().sequences[0].tokens) == 4
    runs = world.rest.list_training_runs(project_id="archive").result().training_runs
    assert copied.removeprefix("tinker://").split("/")[0] in [r.training_run_id for r in runs]


@answers(tinker.RestClient, "list_sessions")
def list_sessions(world: World, call: Call) -> None:
    new = []
    for _ in range(2):
        service = tinker.ServiceClient(base_url=world.url, api_key=KEY)
        service.create_sampling_client(base_model=MODEL).result()
        new.append(service.holder.get_session_id())
        service.close("success")
    pages = [call(world.rest, limit=1, offset=offset).sessions for offset in (0, 1)]
    assert [*pages[0], *pages[1]] == new[::-1]


@answers(tinker.RestClient, "get_session")
def get_session(world: World, call: Call) -> None:
    policy, sampler = world.policy(), world.sampler()
    found = call(world.rest, session_of(world))
    assert found.training_run_ids[-1] == policy.model_id
    assert sampler._sampling_session_id in found.sampler_ids
    assert (found.display_name, found.user_metadata) == ("Every Call", {"who": "test"})


@answers(tinker.RestClient, "assign_session_project")
def assign_project(world: World, call: Call) -> None:
    service = tinker.ServiceClient(base_url=world.url, api_key=KEY)
    run = service.create_lora_training_client(MODEL, rank=1).result().model_id
    project = world.name()
    call(world.rest, service.holder.get_session_id(), project)
    runs = world.rest.list_training_runs(project_id=project).result().training_runs
    assert [found.training_run_id for found in runs] == [run]
    service.close("success")


@answers(tinker.RestClient, "export_session_trace")
def trace(world: World, call: Call) -> None:
    policy = world.trained()
    events = httpx.get(call(world.rest, session_of(world))).json()["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    mine = [e for e in events if e["ph"] == "X" and rows[e["tid"]] == policy.model_id]
    assert [event["name"] for event in mine] == ["forward_backward", "optim_step"]
    assert all(event["dur"] > 0 for event in mine)
    assert abs(mine[0]["ts"] / 1e6 - time.time()) < 60


@answers(tinker.RestClient, "search_sessions")
def search_sessions(world: World, call: Call) -> None:
    """Three sessions found by words of their names, page by page, newest first."""
    mark, made = world.name(), []
    for color in ("Red", "Green", "Blue"):
        service = tinker.ServiceClient(
            {"mark": mark},
            base_url=world.url,
            api_key=KEY,
            display_name=f"Nightly {color} {mark}",
        )
        service.create_sampling_client(base_model=MODEL).result()
        made.append(service)
    ids = [service.holder.get_session_id() for service in made][::-1]
    request = types.SessionSearchRequest(display_name=f"{mark} nightly", limit=2)
    first = call(world.rest, request)
    second = call(world.rest, request.model_copy(update={"cursor": first.next_cursor}))
    assert [s.session_id for s in (*first.sessions, *second.sessions)] == ids
    assert second.next_cursor is None
    made[0].close("interrupted").result()

    def found(**query: Any) -> list[str]:
        query["user_metadata"] = {"mark": mark}
        page = call(world.rest, types.SessionSearchRequest(**query))
        return [session.session_id for session in page.sessions]

    interrupted = types.ClientFinishedSessionStatusQuery(reasons=["interrupted"])
    assert found(statuses=[interrupted]) == ids[2:]
    assert found(statuses=[types.ActiveSessionStatusQuery()]) == ids[:2]
    assert found(owner=types.UserSearchOwner(owner_urns=["tml:user:somebody"])) == []
    assert found(project_ids=["nobody"]) == []
    assert found(session_id=ids[1]) == [ids[1]]
    for service in made[1:]:
        service.close("success")


@answers(tinker.RestClient, "whoami")
def whoami(world: World, call: Call) -> None:
    found = call(world.rest)
    assert (found.user_urn, found.email) == ("tml:user:local", None)
    assert found.org_urn == "tml:organization:local"


@answers(tinker.RestClient, "get_sampler")
def get_sampler(world: World, call: Call) -> None:
    path = world.policy().save_weights_for_sampler(world.name()).result().path
    sampler = world.service.create_sampling_client(model_path=path).result()
    found = call(world.rest, sampler._sampling_session_id)
    assert found.model_path == path
    assert Path(found.base_model) == world.directory


@answers(tinker.RestClient, "get_audit_log")
@answers(tinker.AdminClient, "get_audit_log")
def audit_log(world: World, call: Call) -> None:
    assert call(world.rest).entries == []
    assert call(world.admin, "checkpoints").entries == []


@answers(tinker.RestClient, "get_billing_usage")
@answers(tinker.AdminClient, "get_billing_usage")
def usage(world: World, call: Call) -> None:
    """The tokens that one run has really used, and they cost nothing."""
    policy = world.policy()
    policy.forward_backward(DATA, "cross_entropy").result()  # 4 + 2 tokens
    policy.forward(DATA[1:], "cross_entropy").result()  # 2 more
    sampler = policy.save_weights_and_get_sampling_client().result()
    sampler.sample(PROMPT, 3, GREEDY).result()  # a prompt of 5, and 3 times 4 tokens
    policy.save_state(world.name()).result()
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    call(world.admin, hour - timedelta(hours=1), hour + timedelta(hours=1))
    call(world.rest, str(hour - timedelta(hours=1)), str(hour + timedelta(hours=1)))
    # The type of the SDK has no field for the run, which this engine adds: read the answer itself.
    answer = httpx.get(
        f"{world.url}/api/v1/billing/usage/events",
        params={
            "starting_on": (hour - timedelta(hours=1)).isoformat(),
            "ending_before": (hour + timedelta(hours=1)).isoformat(),
        },
        headers={"x-api-key": KEY},
    ).json()
    mine = [event for event in answer["data"] if event["training_run_id"] == policy.model_id]
    counts = {event["event_info"]["type"]: event["event_info"] for event in mine}
    assert counts["training"]["token_count"] == 8
    assert counts["sampling_prefill"]["token_count"] == 5
    assert counts["sampling_sample"]["token_count"] == 12
    assert counts["checkpoint"]["count"] == 1
    found = call(world.admin, hour - timedelta(hours=1), hour + timedelta(hours=1))
    of_session = [event for event in found.data if event.session_id == session_of(world)]
    assert {event.estimated_cost_usd or 0.0 for event in of_session} == {0.0}
    trained = [event.event_info for event in of_session if event.event_info.type == "training"]
    assert sum(info.token_count for info in trained) >= 8
    assert found.sessions[session_of(world)].user_metadata == {"who": "test"}
    assert call(world.rest, hour - timedelta(hours=3), hour - timedelta(hours=2)).data == []


@answers(tinker.RestClient, "get_current_checkpoint_storage_usage")
@answers(tinker.AdminClient, "get_current_checkpoint_storage_usage")
def storage(world: World, call: Call) -> None:
    def size(project: str) -> int:
        found = call(world.admin, project_id=project).data
        return found[0].size_bytes if found else 0

    before, policy = size("lab"), world.policy()
    path = policy.save_state(world.name()).result().path
    (listed,) = world.rest.list_checkpoints(policy.model_id).result().checkpoints
    assert size("lab") - before == listed.size_bytes
    world.rest.delete_checkpoint_from_tinker_path(path).result()
    assert size("lab") == before
    assert call(world.rest, "nobody").data == []

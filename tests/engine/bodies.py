"""What the fuzz test sends: random bodies, and valid ones with parts replaced."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import zstandard
from hypothesis import strategies as st
from tinker.proto import tinker_public_pb2 as pb

MODEL = "posttrain/tiny"


@dataclass
class Victim:
    """A client whose ids the fuzzer knows, and may break."""

    url: str
    routes: list[tuple[str, str]]
    ids: dict[str, Any]
    http: httpx.Client
    seq_id: int = 1000
    sent: int = 0
    accepted: int = 0
    slowest: float = 0.0
    kinds: dict[int, int] = field(default_factory=dict)  # answers by status


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -1e-9, 1e308, "", "x",
    "..", "../../etc/passwd", "\x00", "a/b", "é" * 50, "tinker://x/y/z", "x" * 5000, "1e999",
    [], [[]], {}, [None], {"type": "adamw"}, {"type": []}, {"a": {"b": [1, {"c": None}]}},
]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from(ODD)
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


QUERIES = ("", "", "?limit=2&offset=1", "?limit=-1", "?offset=9e9&limit=x", "?access_scope=%00",
           "?starting_on=2026-01-01&ending_before=x")  # fmt: skip


def valid_body(draw: st.DrawFn, path: str, victim: Victim) -> dict[str, Any]:
    """A body that the route would accept, or nearly."""
    ids = victim.ids
    victim.seq_id += 1
    tokens = draw(st.lists(st.integers(0, 259), min_size=1, max_size=12))
    name = draw(st.sampled_from(["kept", "x", "..", "a b"]))
    mine = {"model_id": ids["model_id"], "seq_id": victim.seq_id}
    session = {"session_id": ids["session_id"], "type": "x"}
    creating = session | {"model_seq_id": draw(st.integers(1, 5)), "user_metadata": {"a": "b"}}
    lora = {"rank": draw(st.integers(0, 40)), "seed": 1, "train_mlp": True}
    targets = {"data": tokens[1:], "dtype": "int64", "shape": [len(tokens) - 1, 1]}
    node = {"op": "call_method", "name": "s", "target": "sum", "args": [{"ref": "p"}]}
    pair = {"tuple": [{"ref": "s"}, {"dict": {"custom/a:sum": {"ref": "s"}}}]}
    nodes = [
        {"op": "placeholder", "name": "p", "target": "logprobs"},
        node,
        {"op": "output", "name": "o", "target": "output", "args": [pair]},
    ]
    bodies: dict[str, dict[str, Any]] = {
        "create_session": {"tags": [], "user_metadata": {"a": "b"}, "display_name": "n"},
        "session_heartbeat": session,
        "finish": {"reason": {"type": "success"}, "detail": "d"},
        "search": {"limit": 3, "display_name": "n", "owner": {"type": "own"},
                   "statuses": [{"type": "client_finished", "reasons": ["success"]}],
                   "cursor": {"last_created_at": "2026-01-01T00:00:00Z", "last_session_id": "x"}},
        "project": {"project_id": "p"},
        "create_model": creating | {"base_model": MODEL, "lora_config": lora},
        "load_weights": mine | {"path": ids["path"], "optimizer": draw(st.booleans())},
        "get_info": mine,
        "create_custom_loss": session | {"custom_loss_seq_id": draw(st.integers(0, 50)),
                                         "name": "l", "inputs": [{"name": "logprobs", "rank": 1}],
                                         "graph": {"format": 1, "nodes": nodes}},
        "optim_step": mine | {"adam_params": {"learning_rate": draw(st.floats(0, 1e9)),
                                              "weight_decay": 0.1, "grad_clip_norm": 1.0}},
        "save_weights": mine | {"path": name, "overwrite": draw(st.booleans()), "ttl_seconds": 60},
        "save_weights_external": mine | {"path": name, "age_encryption_recipients": []},
        "save_weights_for_sampler": mine | {"path": draw(st.sampled_from([name, None])),
                                            "sampling_session_seq_id": 1, "kind": "snapshot"},
        "create_sampling_session": session | {"model_path": ids["sampler_path"]},
        "join_sampling_session": {"sampling_session_id": draw(st.sampled_from(ids["samplers"]))},
        "asample": {
            "sampling_session_id": draw(st.sampled_from(ids["samplers"])),
            "seq_id": victim.seq_id,
            "num_samples": draw(st.integers(1, 4)),
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "sampling_params": {"max_tokens": draw(st.integers(0, 6)), "temperature": 1.0,
                                "top_k": -1, "top_p": 0.9, "seed": 1, "stop": ["a"]},
            "prompt_logprobs": True,
            "topk_prompt_logprobs": draw(st.integers(0, 3)),
            "topk_sample_logprobs": draw(st.integers(0, 3)),
            "target_prompt_logprobs": targets if len(tokens) > 1 else None,
            "prompt_alt_tokens_k": draw(st.integers(0, 3)),
        },
        "retrieve_future": {"request_id": "x", "allow_metadata_only": True},
        "weights_info": {"tinker_path": ids["path"]},
        "copy_weights": {"source_path": ids["path"], "destination_project_id": "p"},
        "ttl": {"ttl_seconds": draw(st.integers(50, 100))},
    }  # fmt: skip
    return bodies.get(path.rsplit("/", 1)[-1], {})


def mutate(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """`value` with one place somewhere inside replaced, removed or added to."""
    if isinstance(value, dict) and value and depth < 6:
        key, changed = draw(st.sampled_from(sorted(value))), dict(value)
        act = draw(st.integers(0, 9))
        if act == 0:
            del changed[key]
        elif act == 1:
            changed[draw(st.text(max_size=8))] = draw(ANYTHING)
        else:
            changed[key] = mutate(draw, value[key], depth + 1)
        return changed
    if isinstance(value, list) and value and depth < 6 and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutate(draw, value[place], depth + 1), *value[place + 1 :]]
    return draw(SCALARS | ANYTHING)


@st.composite
def json_bodies(draw: st.DrawFn, path: str, victim: Victim) -> bytes:
    how = draw(st.integers(0, 9))
    if how == 0:
        return draw(st.binary(max_size=60))
    if how == 1:
        return json.dumps(draw(ANYTHING)).encode()
    body: Any = valid_body(draw, path, victim)
    for _ in range(draw(st.integers(0, 2))):
        body = mutate(draw, body)
    return json.dumps(body).encode()


@st.composite
def tensors(draw: st.DrawFn, length: int) -> pb.Tensor:
    """Mostly of the right length; sparse ones are rarely consistent."""
    size = draw(st.sampled_from([length, length, length, 0, 1, 7]))
    kind: Any = draw(st.sampled_from([pb.DTYPE_INT64, pb.DTYPE_FLOAT32, pb.DTYPE_INT32, 4, 0, 9]))
    tensor = pb.Tensor(dtype=kind)
    width = 8 if kind == pb.DTYPE_INT64 else 4
    if draw(st.booleans()):
        tensor.dense = draw(st.binary(min_size=width, max_size=width)) * size
    else:
        tensor.sparse_csr.values = draw(st.binary(max_size=width * 4))
        starts = draw(st.lists(st.integers(-2, 6) | st.integers(-(2**63), 2**63 - 1), max_size=9))
        tensor.sparse_csr.crow_indices = b"".join(
            n.to_bytes(8, "little", signed=True) for n in starts
        )
        tensor.sparse_csr.col_indices = draw(st.binary(max_size=32))
    odd = st.lists(st.integers(-1, 2**40), max_size=3)
    tensor.shape.extend(draw(st.sampled_from([[size], [size, 1]]) | odd))
    return tensor


@st.composite
def proto_bodies(draw: st.DrawFn, victim: Victim) -> bytes:
    victim.seq_id += 1
    losses = ["cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo", "custom", "?"]
    message = pb.ForwardBackwardRequest(
        model_id=draw(st.sampled_from([victim.ids["model_id"], "", "x"])),
        seq_id=draw(st.sampled_from([victim.seq_id, 0, -1])),
        loss_fn=draw(st.sampled_from(losses)),
        forward_only=draw(st.booleans()),
    )
    for key in draw(st.lists(st.sampled_from(["clip_low_threshold", "beta", "loss_id", "z"]))):
        if draw(st.booleans()):
            message.loss_fn_config_v2[key].number = draw(st.floats())
        else:
            message.loss_fn_config_v2[key].text = f"{victim.ids['session_id']}:loss:1"
    for _ in range(draw(st.integers(0, 3))):
        datum, length = message.data.add(), draw(st.integers(0, 8))
        tokens = draw(st.lists(st.integers(0, 259), min_size=length, max_size=length))
        chunk = datum.model_input.add()
        if draw(st.integers(0, 9)):
            chunk.encoded_text.tokens = b"".join(n.to_bytes(4, "little") for n in tokens)
        else:
            chunk.image.data = b"x"
        if draw(st.integers(0, 3)):
            target = datum.loss_fn_inputs["target_tokens"]
            target.dense = b"".join(n.to_bytes(8, "little") for n in tokens)
            target.dtype = pb.DTYPE_INT64
            target.shape.append(length)
        names = ["target_tokens", "weights", "logprobs", "advantages", "sequence_ratio_mask", "q"]
        for name in draw(st.lists(st.sampled_from(names), max_size=3)):
            datum.loss_fn_inputs[name].CopyFrom(draw(tensors(length)))
    body = message.SerializeToString()
    if draw(st.integers(0, 3)) == 0 and body:  # and break the encoding itself
        place = draw(st.integers(0, len(body) - 1))
        body = body[:place] + draw(st.binary(max_size=4)) + body[place + draw(st.integers(0, 3)) :]
    return body


def fill(draw: st.DrawFn, template: str, victim: Victim) -> str:
    """A path of the template: parts that exist, and parts that must not reach the disk."""
    run = victim.ids["model_id"]
    known = {
        "session": [victim.ids["session_id"]],
        "run": [run],
        "segment": ["weights", "sampler_weights", "external_weights"],
        "name": ["kept", "x"],
        "sampler": victim.ids["samplers"],
        "file": ["adapter_config.json"],
    }
    odd = ["..", "%2e%2e", "a/b", "\x00", "é", "x" * 3000, "*", "."]
    parts = []
    for part in template.split("/"):
        key = part.strip("{}").partition(":")[0]
        if not part.startswith("{"):
            parts.append(part)
        elif template.endswith("/finish") or not draw(st.integers(0, 3)):
            parts.append(quote(draw(st.sampled_from(odd) | st.text(max_size=9)), safe=""))
        elif key == "expires":
            parts.append("99999999999")
        else:
            parts.append(quote(draw(st.sampled_from(known.get(key, ["x"]))), safe=":"))
    query = draw(st.sampled_from(QUERIES))
    return "/".join(parts) + query


@st.composite
def requests(draw: st.DrawFn, victim: Victim) -> dict[str, Any]:
    # Half of all bodies go where there is most to break.
    busy = [("POST", f"/api/v1/{name}") for name in ("asample", "forward_backward", "optim_step")]
    method, template = draw(st.sampled_from(busy) | st.sampled_from(victim.routes))
    proto = template.endswith("/forward_backward") and draw(st.integers(0, 9)) > 0
    content = draw(proto_bodies(victim) if proto else json_bodies(template, victim))
    headers = {"content-type": "application/x-protobuf" if proto else "application/json"}
    if not draw(st.integers(0, 9)):
        headers["content-encoding"] = draw(st.sampled_from(["zstd", "gzip", "identity"]))
        if draw(st.booleans()):
            content = zstandard.compress(content)
    url = fill(draw, template, victim)
    return {"method": method, "url": url, "content": content, "headers": headers}

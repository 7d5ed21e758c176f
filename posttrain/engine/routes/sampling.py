"""Routes of sampling clients, and of the results that all clients wait for."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.engine.bodies import json_body, large_json_body
from posttrain.engine.engine import Engine
from posttrain.engine.requests import need
from posttrain.engine.routes.training import promised


def sampling_routes(engine: Engine) -> list[Route]:
    samplers = engine.samplers

    async def create_sampling_session(request: Request) -> Response:
        body = await json_body(request)
        session = engine.sessions.get(need(body, "session_id", str))
        sampler_id = samplers.create(session, body)
        content = {"sampling_session_id": sampler_id, "type": "create_sampling_session"}
        return JSONResponse(content)

    async def join_sampling_session(request: Request) -> Response:
        count = samplers.join(need(await json_body(request), "sampling_session_id", str))
        return JSONResponse({"client_counter": count, "type": "join_sampling_session"})

    async def get_sampler(request: Request) -> Response:
        sampler_id = request.path_params["sampler"]
        weights = samplers.get(sampler_id).weights
        content = {"sampler_id": sampler_id, "base_model": weights.model.path}
        return JSONResponse(content | ({"model_path": weights.path} if weights.path else {}))

    async def sample(request: Request) -> Response:
        promise, count = samplers.sample(*await large_json_body(request))
        ids = [f"{promise.request_id}-{number}" for number in range(count)]
        return promised(promise, sample_sequence_ids=ids)

    async def retrieve_future(request: Request) -> Response:
        request_id = need(await json_body(request), "request_id", str)
        try:
            answer = await engine.promises.retrieve(request_id)
        except KeyError:
            text = f"there is no request {request_id[:80]!r}; was the engine restarted?"
            return JSONResponse({"error": text, "category": "user"})
        if answer is None:
            again = {"type": "try_again", "request_id": request_id, "queue_state": "active"}
            return JSONResponse(again, 408)
        return Response(answer.body, media_type=answer.media_type)

    return [
        Route("/api/v1/create_sampling_session", create_sampling_session, methods=["POST"]),
        Route("/api/v1/join_sampling_session", join_sampling_session, methods=["POST"]),
        Route("/api/v1/samplers/{sampler}", get_sampler),
        Route("/api/v1/asample", sample, methods=["POST"]),
        Route("/api/v1/retrieve_future", retrieve_future, methods=["POST"]),
    ]

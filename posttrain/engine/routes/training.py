"""Routes of training clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.engine.bodies import forward_backward_body, json_body, large_json_body
from posttrain.engine.engine import Engine
from posttrain.engine.paths import EXTERNAL, WEIGHTS
from posttrain.engine.promises import Promise


def promised(promise: Promise, **more: Any) -> JSONResponse:
    return JSONResponse({"request_id": promise.request_id, **more})


def training_routes(engine: Engine) -> list[Route]:
    def promising(method: Callable[[dict[str, Any]], Promise]) -> Callable[..., Any]:
        async def handler(request: Request) -> Response:
            return promised(method(await json_body(request)))

        return handler

    async def forward_backward(request: Request) -> Response:
        message, size = await forward_backward_body(request)
        return promised(engine.forward_backward(message, size), model_id=message.model_id)

    async def create_custom_loss(request: Request) -> Response:
        body, _ = await large_json_body(request)
        return promised(engine.create_custom_loss(body))

    async def get_info(request: Request) -> Response:
        record = engine.client(await json_body(request)).record
        model = engine.models.find(record.base_model)
        return JSONResponse(
            {
                "type": "get_info",
                "model_id": record.run,
                "is_lora": True,
                "lora_rank": record.lora.rank,
                "model_name": record.base_model,
                "optimizer_config": {"type": "adamw"},
                "model_data": {
                    "arch": model.config.model_type,
                    "model_name": model.path,  # the SDK finds a sampler's tokenizer by it
                    "tokenizer_id": str(model.directory),
                },
            }
        )

    posts: dict[str, Callable[..., Any]] = {
        "create_model": promising(engine.create_model),
        "load_weights": promising(engine.load_weights),
        "get_info": get_info,
        "forward_backward": forward_backward,
        "create_custom_loss": create_custom_loss,
        "optim_step": promising(engine.optim_step),
        "save_weights": promising(lambda body: engine.save(body, WEIGHTS)),
        "save_weights_external": promising(lambda body: engine.save(body, EXTERNAL)),
        "save_weights_for_sampler": promising(engine.save_weights_for_sampler),
    }
    return [Route(f"/api/v1/{path}", call, methods=["POST"]) for path, call in posts.items()]

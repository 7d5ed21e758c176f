"""Sessions, training clients and samplers: what the HTTP server's routes do.

All methods are called on the event loop's thread and return at once; what computes is handed
to the worker as a job, and its result to a promise.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from posttrain.engine.checkpoints import SAMPLER, WEIGHTS, RunRecord, Store
from posttrain.engine.errors import UserError
from posttrain.engine.models import Merged, Models, Weights
from posttrain.engine.precision import find_dtype
from posttrain.engine.promises import Answer, Promise, Promises
from posttrain.engine.requests import (
    need,
    optional,
    read_adam,
    read_lora,
    read_sample,
    refuse_other_optimizers,
)
from posttrain.engine.sample import Result
from posttrain.engine.sampler import Generation
from posttrain.engine.trainer import Trainer
from posttrain.engine.wire import read_data, read_settings, write_output, write_result
from posttrain.engine.worker import Waiting, Worker

logger = logging.getLogger(__name__)

PROTOBUF = "application/x-protobuf"
FORGET = 6 * 3600.0  # seconds without a heartbeat after which a session is ended


@dataclass
class Session:
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None
    runs: list[str] = field(default_factory=list)
    samplers: list[str] = field(default_factory=list)
    seen: float = field(default_factory=time.monotonic)  # its last sign of life


@dataclass
class Client:
    """A training client. `trainer` is made by the worker, and only it may touch it."""

    record: RunRecord
    trainer: Trainer | None = None
    used: float = field(default_factory=time.time)


class Engine:
    def __init__(
        self,
        models: Mapping[str, Path],
        state: Path,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = find_dtype(dtype, self.device)
        self.models = Models(models, self.device)
        self.store = Store(state)
        self.promises = Promises()
        self.sessions: dict[str, Session] = {}
        self.clients: dict[str, Client] = {}
        self.samplers: dict[str, Weights] = {}
        self.merged = Merged(self.dtype)
        # Nameless samplers live as long as the engine. (Killed, it leaves the directory to the
        # system's own cleaning of temporary files.)
        self.scratch = tempfile.TemporaryDirectory(prefix="posttrain-")
        self.worker = Worker()
        self.worker.start()

    # Promises -----------------------------------------------------------------------------

    def promise(
        self, work: Callable[[], Answer], client: str = "", seq_id: int | None = None
    ) -> Promise:
        """Let the worker do `work`, unless this request was made before."""
        old = self.promises.repeated(client, seq_id)
        if old is not None:
            return old
        promise, loop = self.promises.new(client, seq_id), asyncio.get_running_loop()

        def job() -> None:
            try:
                answer = work()
            except Exception as error:
                answer = failure(error)
            loop.call_soon_threadsafe(promise.settle, answer)

        self.worker.submit(job)
        return promise

    def session(self, body: dict[str, Any]) -> Session:
        session_id = need(body, "session_id", str)
        if session_id not in self.sessions:
            raise UserError(f"there is no session {session_id!r}; was the engine restarted?")
        return self.sessions[session_id]

    def create_session(self, body: dict[str, Any]) -> str:
        now = time.monotonic()
        for old in [key for key, session in self.sessions.items() if now > session.seen + FORGET]:
            self.finish_session(old)
        session_id = str(uuid.uuid4())
        metadata = optional(body, "user_metadata", dict, None)
        self.sessions[session_id] = Session(metadata, optional(body, "display_name", str, None))
        return session_id

    def heartbeat(self, session_id: str) -> None:
        """A session that has ended gets none: its trainers are gone."""
        if session_id in self.sessions:
            self.sessions[session_id].seen = time.monotonic()

    def finish_session(self, session_id: str) -> None:
        """Forget what only this session's clients can reach. Unknown sessions are ended already.

        Its samplers stay: other processes may hold them, and they cost no memory.
        """
        session = self.sessions.pop(session_id, None)
        for run in session.runs if session else []:
            self.clients.pop(run, None)

    # Training -----------------------------------------------------------------------------

    def client(self, body: dict[str, Any]) -> Client:
        model_id = need(body, "model_id", str)
        if model_id not in self.clients:
            raise UserError(f"there is no training client {model_id!r}; was the engine restarted?")
        client = self.clients[model_id]
        client.used = time.time()
        return client

    def trainer(self, body: dict[str, Any]) -> Trainer:
        """For use in jobs: an earlier one has made the trainer, or has failed."""
        trainer = self.client(body).trainer
        if trainer is None:
            raise UserError(f"training client {body['model_id']} could not be created")
        return trainer

    def register(self, body: dict[str, Any], kind: str, work: Callable[[Client], None]) -> Promise:
        """A new training client, which `work` completes; the id is fixed by the protocol."""
        session = self.session(body)
        model_id = f"{body['session_id']}:train:{need(body, 'model_seq_id', int)}"

        def job() -> Answer:
            client = self.clients[model_id] = self.new_client(model_id, body)
            try:
                work(client)
            except BaseException:
                del self.clients[model_id]
                raise
            self.store.add_run(client.record)
            session.runs.append(model_id)
            return as_json(model_id=model_id, type=kind)

        return self.promise(job, f"create {model_id}", 1)

    def new_client(self, model_id: str, body: dict[str, Any]) -> Client:
        """The client a creation request describes, by itself or through a checkpoint."""
        metadata = optional(body, "user_metadata", dict, None)
        refuse_other_optimizers(body.get("optimizer_config"))
        if "path" in body:
            checkpoint = self.store.get(need(body, "path", str))
            name, lora = checkpoint.base_model, checkpoint.lora
            if body.get("base_model") is not None:
                name = self.models.find(body["base_model"]).name
        else:
            name = self.models.find(need(body, "base_model", str)).name
            lora = read_lora(body, secrets.randbits(62))
        return Client(RunRecord(model_id, name, lora, metadata))

    def create_model(self, body: dict[str, Any]) -> Promise:
        def work(client: Client) -> None:
            model = self.models.find(client.record.base_model)
            client.trainer = Trainer(model.decoder, client.record.lora, self.dtype)

        return self.register(body, "create_model", work)

    def load_weights(self, body: dict[str, Any]) -> Promise:
        """Into an existing client, or (without a model_id) into a new one."""
        path = need(body, "path", str)

        def load(client: Client) -> None:
            checkpoint = self.store.get(path)
            if checkpoint.segment != WEIGHTS:
                raise UserError(
                    f"{path} can only be sampled from; save_state writes what training can load"
                )
            if client.trainer is None:
                model = self.models.find(client.record.base_model)
                client.trainer = Trainer(model.decoder, client.record.lora, self.dtype)
            with_optimizer = optional(body, "optimizer", bool, False)
            client.trainer.load(
                self.store.tensors(checkpoint, "adapter"),
                self.store.tensors(checkpoint, "optimizer") if with_optimizer else None,
            )

        if body.get("model_id") is None:
            return self.register(body, "load_weights", load)

        def work() -> Answer:
            load(self.client(body))
            return as_json(path=path, type="load_weights")

        return self.promise(work, body["model_id"], optional(body, "seq_id", int, None))

    def forward_backward(self, message: Any) -> Promise:
        """`message` is the parsed protobuf request."""

        def work() -> Answer:
            trainer = self.trainer({"model_id": message.model_id})
            output = trainer.forward_backward(
                read_data(message),
                message.loss_fn,
                read_settings(message),
                backward=not message.forward_only,
            )
            return Answer(write_output(output), PROTOBUF)

        return self.promise(work, message.model_id, message.seq_id)

    def optim_step(self, body: dict[str, Any]) -> Promise:
        def work() -> Answer:
            return as_json(metrics=self.trainer(body).optim_step(read_adam(body)))

        return self.promise(work, need(body, "model_id", str), optional(body, "seq_id", int, None))

    def save_weights(self, body: dict[str, Any], segment: str) -> Promise:
        """A durable checkpoint: for training (with the optimizer's state) or for sampling."""

        def work() -> Answer:
            trainer = self.trainer(body)
            tensors = {"adapter": trainer.adapter.state()}
            if segment == WEIGHTS:
                tensors["optimizer"] = trainer.optimizer_state()
            checkpoint = self.store.save(
                self.client(body).record,
                segment,
                need(body, "path", str),
                tensors,
                overwrite=optional(body, "overwrite", bool, False),
                ttl_seconds=optional(body, "ttl_seconds", int, None),
                user_metadata=optional(body, "user_metadata", dict, None),
            )
            kind = "save_weights" if segment == WEIGHTS else "save_weights_for_sampler"
            return as_json(path=checkpoint.path, type=kind)

        return self.promise(work, need(body, "model_id", str), optional(body, "seq_id", int, None))

    # Sampling -----------------------------------------------------------------------------

    def add_sampler(self, session: Session, weights: Weights) -> str:
        """Sampler ids are global: a session may hand its samplers to other processes."""
        sampler_id = str(uuid.uuid4())
        self.samplers[sampler_id] = weights
        session.samplers.append(sampler_id)
        return sampler_id

    def save_weights_for_sampler(self, body: dict[str, Any]) -> Promise:
        """Named: a checkpoint. Nameless: a sampler of the present weights, not durable."""
        if body.get("path") is not None:
            return self.save_weights(body, SAMPLER)

        def work() -> Answer:
            record, key = self.client(body).record, uuid.uuid4().hex
            file = Path(self.scratch.name) / f"{key}.safetensors"
            save_file(self.trainer(body).adapter.state(), file)
            weights = Weights(key, self.models.find(record.base_model), file, record.lora)
            session = self.session({"session_id": record.run.split(":")[0]})
            sampler_id = self.add_sampler(session, weights)
            return as_json(sampling_session_id=sampler_id, type="save_weights_for_sampler")

        return self.promise(work, need(body, "model_id", str), optional(body, "seq_id", int, None))

    def create_sampling_session(self, body: dict[str, Any]) -> str:
        """Of a base model or a checkpoint. Raises UserError where there is none such."""
        session = self.session(body)
        path = optional(body, "model_path", str, None)
        if path is None:
            model = self.models.find(need(body, "base_model", str))
            return self.add_sampler(session, Weights(f"base {model.name}", model))
        checkpoint = self.store.get(path)
        if checkpoint.segment != SAMPLER:
            raise UserError(f"{path} is for training; save_weights_for_sampler writes samplers")
        model = self.models.find(checkpoint.base_model)
        file = self.store.file(checkpoint, "adapter")
        weights = Weights(checkpoint.data, model, file, checkpoint.lora, path)
        return self.add_sampler(session, weights)

    def sampler(self, sampler_id: str) -> Weights:
        if sampler_id not in self.samplers:
            raise UserError(f"there is no sampler {sampler_id!r}; was the engine restarted?")
        return self.samplers[sampler_id]

    def sample(self, body: dict[str, Any]) -> tuple[Promise, int]:
        """The promise of a SampleResponse, and the number of its sequences."""
        sampler_id = need(body, "sampling_session_id", str)
        count, seq_id = optional(body, "num_samples", int, 1), optional(body, "seq_id", int, None)
        old = self.promises.repeated(sampler_id, seq_id)
        if old is not None:
            return old, count
        promise = self.promises.new(sampler_id, seq_id)
        loop = asyncio.get_running_loop()
        try:
            weights = self.sampler(sampler_id)
            request = read_sample(body, weights.model)
        except UserError as error:
            promise.settle(failure(error))
            return promise, count

        def start() -> Generation:
            return Generation(self.merged.get(weights), weights.model.tokenizer)

        def done(result: Result | Exception) -> None:
            if isinstance(result, Result):
                answer = Answer(write_result(result), PROTOBUF)
            else:
                answer = failure(result)
            loop.call_soon_threadsafe(promise.settle, answer)

        self.worker.sample(Waiting(weights.key, weights.model.config, start, request, done))
        return promise, count


def as_json(**content: Any) -> Answer:
    return Answer(json.dumps(content).encode())


def failure(error: Exception) -> Answer:
    """A failed promise: the user's mistake, or (logged with its trace) the engine's."""
    if isinstance(error, UserError):
        return as_json(error=str(error), category="user")
    logger.error("a request failed", exc_info=error)
    text = f"the engine failed: {type(error).__name__}: {error}"
    return as_json(error=text, category="server")

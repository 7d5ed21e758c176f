"""Sessions, training clients and samplers: what the HTTP server's routes do.

All methods are called on the event loop's thread and return at once; what computes is handed
to the worker as a job, and its result to a promise.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.engine import limits, usage
from posttrain.engine.answers import PROTOBUF, as_json, failure
from posttrain.engine.checkpoints import Store
from posttrain.engine.clients import Client, make_room
from posttrain.engine.customloss import custom_forward_backward
from posttrain.engine.devices import choose
from posttrain.engine.durable import unwritten
from posttrain.engine.errors import BusyError, UserError
from posttrain.engine.graphs import CustomLoss
from posttrain.engine.leftovers import remove_leftovers
from posttrain.engine.models import Models
from posttrain.engine.paths import EXTERNAL, SAMPLER, WEIGHTS, check_name, run_name, session_of
from posttrain.engine.peft import peft_files
from posttrain.engine.precision import find_dtype
from posttrain.engine.promises import Answer, Promise, Promises
from posttrain.engine.records import RunRecord
from posttrain.engine.requests import (
    need,
    optional,
    read_adam,
    read_lora,
    read_metadata,
    refuse_other_optimizers,
)
from posttrain.engine.samplers import Samplers
from posttrain.engine.scratch import Scratch
from posttrain.engine.sessions import Session, Sessions
from posttrain.engine.traces import Span, Traces
from posttrain.engine.trainer import Trainer
from posttrain.engine.usage import Usage
from posttrain.engine.wire import read_data, read_settings, write_output
from posttrain.engine.worker import Worker

logger = logging.getLogger(__name__)

SWEEP = 3600.0  # seconds between two searches for what crashes have left


class Engine:
    def __init__(
        self,
        models: Mapping[str, Path],
        state: Path,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        chosen = choose(device)
        self.dtype = find_dtype(dtype, chosen)
        self.models = Models(models, chosen)
        self.store = Store(state)
        self.usage = Usage(state)
        self.traces = Traces()
        self.promises = Promises()
        self.sessions = Sessions(state, self.forget)
        self.clients: dict[str, Client] = {}
        self.losses: dict[str, CustomLoss] = {}
        self.swept = time.monotonic()
        self.waiting_bytes = 0  # of training data whose turn has not come
        self.worker = Worker()
        self.worker.start()
        self.scratch = Scratch(state / "scratch")
        self.samplers = Samplers(
            self.models, self.store, self.promises, self.worker, self.usage, self.note, self.dtype,
            self.scratch,
        )  # fmt: skip

    def forget(self, session: Session) -> None:
        """Drop what only an ended session's clients could reach."""
        session_id = session.record.session_id
        for run in list(session.runs):
            self.clients.pop(run, None)
        for loss_id in [key for key in list(self.losses) if key.startswith(f"{session_id}:")]:
            del self.losses[loss_id]
        self.promises.end(session_id)
        self.samplers.end(session)

    def tidy(self) -> None:
        """What has to be done once a minute, in a thread of its own."""
        self.samplers.tidy()
        self.store.remove_expired()
        self.usage.flush()
        if time.monotonic() > self.swept + SWEEP:
            self.swept = time.monotonic()
            remove_leftovers(self.store.root)

    def close(self) -> None:
        """Stop computing, and remove what ends with the process."""
        self.worker.stop()
        self.scratch.close()
        try:
            self.usage.flush()
        except OSError as error:
            logger.warning("the usage of the last minute is not recorded: %s", error)

    def note(self, session_id: str, name: str, client: str, start: float) -> None:
        self.traces.add(session_id, Span(name, client, start, time.time()))

    # Promises -----------------------------------------------------------------------------

    def promise(
        self,
        name: str,
        client: str,
        work: Callable[[], Answer],
        *,
        seq_id: int | None = None,
        size: int = 0,
    ) -> Promise:
        """Let the worker do `work`, unless this request was made before.

        Args:
            client: the training client (or session) whose requests `seq_id` numbers.
            size: bytes that the request holds until its turn.

        Raises:
            BusyError: too much is waiting.
        """
        seq_id = seq_id or None  # 0 is protobuf's way to say that there is none
        old = self.promises.repeated(client, seq_id)
        if old is not None:
            return old
        if len(self.worker.jobs) >= limits.JOBS:
            raise BusyError(f"{limits.JOBS} requests are waiting; the engine is busy")
        if self.waiting_bytes and self.waiting_bytes + size > limits.WAITING_BYTES:
            raise BusyError(f"{self.waiting_bytes} bytes of training data are waiting")
        self.waiting_bytes += size
        promise, loop = self.promises.new(client, seq_id), asyncio.get_running_loop()
        start = time.time()

        def settle(answer: Answer) -> None:
            self.waiting_bytes -= size
            self.promises.settle(promise, answer)
            self.note(session_of(client), name, client, start)

        def job() -> None:
            try:
                answer = work()
            except Exception as error:
                answer = failure(error)
            loop.call_soon_threadsafe(settle, answer)

        self.worker.submit(job)
        return promise

    def training(self, name: str, body: dict[str, Any], work: Callable[[], Answer]) -> Promise:
        """A promise of a request of one training client."""
        seq_id = optional(body, "seq_id", int, None)
        return self.promise(name, need(body, "model_id", str), work, seq_id=seq_id)

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
        session = self.sessions.get(need(body, "session_id", str))
        model_id = run_name(session.record.session_id, need(body, "model_seq_id", int))

        def job() -> Answer:
            if model_id in self.clients:
                raise UserError(f"training client {model_id} exists; use another model_seq_id")
            if len(self.clients) >= limits.CLIENTS:
                raise UserError(f"{limits.CLIENTS} training clients are open; close some sessions")
            client = self.clients[model_id] = self.new_client(model_id, body)
            session.runs.append(model_id)  # from now on the session's end drops the client
            try:
                work(client)
                self.store.add_run(client.record)
                self.sessions.get(session.record.session_id)  # it may have ended meanwhile
            except BaseException as error:
                self.clients.pop(model_id, None)
                session.runs.remove(model_id)
                if isinstance(error, OSError):
                    raise unwritten(f"training client {model_id}", error) from error
                raise
            return as_json(model_id=model_id, type=kind)

        return self.promise(kind, f"{model_id}:create", job, seq_id=1)

    def new_client(self, model_id: str, body: dict[str, Any]) -> Client:
        """The client a creation request describes, by itself or through a checkpoint."""
        metadata = read_metadata(body)
        refuse_other_optimizers(body.get("optimizer_config"))
        if "path" in body:
            checkpoint = self.store.get(need(body, "path", str))
            name, lora = checkpoint.base_model, checkpoint.lora
            if body.get("base_model") is not None:
                name = self.models.find(need(body, "base_model", str)).name
        else:
            name = self.models.find(need(body, "base_model", str)).name
            lora = read_lora(body, secrets.randbits(62))
        directory = str(self.models.find(name).directory)
        return Client(RunRecord(model_id, name, lora, metadata, base_directory=directory))

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
                    f"{path} is not for training; save_state writes what training can load"
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

        return self.training("load_weights", body, work)

    def forward_backward(self, message: Any, size: int) -> Promise:
        """`message` is the parsed protobuf request, which was `size` bytes long."""
        run, backward = message.model_id, not message.forward_only

        def work() -> Answer:
            trainer = self.trainer({"model_id": run})
            data, settings = read_data(message), read_settings(message)
            if message.loss_fn == "custom":
                loss = self.custom_loss(run, settings)
                output = custom_forward_backward(trainer, loss, data, backward=backward)
            else:
                output = trainer.forward_backward(
                    data, message.loss_fn, settings, backward=backward
                )
            make_room(list(self.clients.values()))
            tokens = sum(len(datum.tokens) for datum in data)
            self.count(run, usage.TRAINING, tokens)
            return Answer(write_output(output), PROTOBUF)

        name = "forward_backward" if backward else "forward"
        return self.promise(name, run, work, seq_id=message.seq_id, size=size)

    def count(self, run: str, kind: str, count: int) -> None:
        model = self.clients[run].record.base_model
        self.usage.add(time.time(), kind, session_of(run), model, run, count)

    def create_custom_loss(self, body: dict[str, Any]) -> Promise:
        """Rebuild a traced loss; the promise holds the id under which its session can use it."""
        session_id = self.sessions.get(need(body, "session_id", str)).record.session_id
        number = need(body, "custom_loss_seq_id", int)

        def work() -> Answer:
            mine = [key for key in list(self.losses) if key.startswith(f"{session_id}:")]
            if len(mine) >= limits.LOSSES:
                raise UserError(f"the session has {limits.LOSSES} custom losses already")
            loss = CustomLoss(
                need(body, "name", str)[:80],
                need(body, "inputs", list),
                need(need(body, "graph", dict), "nodes", list),
            )
            loss_id = f"{session_id}:loss:{number}"
            self.losses[loss_id] = loss
            return as_json(loss_id=loss_id, type="create_custom_loss")

        client = f"{session_id}:loss:{number}"
        return self.promise("create_custom_loss", client, work, seq_id=1)

    def custom_loss(self, run: str, settings: Mapping[str, float | str]) -> CustomLoss:
        """The loss that a request names. A session only has its own."""
        loss_id = settings.get("loss_id")
        loss = self.losses.get(loss_id) if isinstance(loss_id, str) else None
        if loss is None or not str(loss_id).startswith(f"{session_of(run)}:"):
            raise UserError(f"this session has no custom loss {loss_id!r}")
        return loss

    def optim_step(self, body: dict[str, Any]) -> Promise:
        def work() -> Answer:
            return as_json(metrics=self.trainer(body).optim_step(read_adam(body)))

        return self.training("optim_step", body, work)

    # Saving -------------------------------------------------------------------------------

    def save(self, body: dict[str, Any], segment: str) -> Promise:
        """A durable checkpoint: for training, for sampling, or to be taken elsewhere."""
        kind = {WEIGHTS: "save_weights", EXTERNAL: "save_weights_external"}.get(
            segment, "save_weights_for_sampler"
        )

        def work() -> Answer:
            record, adapter = self.client(body).record, self.trainer(body).adapter
            check_name(need(body, "path", str))
            texts: dict[str, str] = {}
            if segment == EXTERNAL:
                if body.get("age_encryption_recipients"):
                    raise UserError("encryption (age_encryption_recipients) is not supported")
                directory = self.models.find(record.base_model).directory
                exported, text = peft_files(adapter, str(directory))
                tensors, texts = {"adapter_model": exported}, {"adapter_config.json": text}
            else:
                tensors = {"adapter": adapter.state()}
            if segment == WEIGHTS:
                tensors["optimizer"] = self.trainer(body).optimizer_state()
            checkpoint = self.store.save(
                record,
                segment,
                body["path"],
                tensors,
                texts=texts,
                overwrite=optional(body, "overwrite", bool, False),
                ttl_seconds=optional(body, "ttl_seconds", int, None),
                user_metadata=read_metadata(body),
            )
            self.count(record.run, usage.CHECKPOINT, 1)
            return as_json(path=checkpoint.path, size_bytes=checkpoint.size_bytes, type=kind)

        return self.training(kind, body, work)

    def save_weights_for_sampler(self, body: dict[str, Any]) -> Promise:
        """Named: a checkpoint. Nameless: a sampler of the present weights, not durable."""
        if body.get("path") is not None:
            return self.save(body, SAMPLER)

        def work() -> Answer:
            record = self.client(body).record
            session = self.sessions.get(session_of(record.run))
            model = self.models.find(record.base_model)
            state = self.trainer(body).adapter.state()
            sampler_id = self.samplers.snapshot(session, state, model, record.lora, record.run)
            return as_json(sampling_session_id=sampler_id, type="save_weights_for_sampler")

        return self.training("save_weights_for_sampler", body, work)

"""Sampling clients: what they sample from, and their requests.

All methods are for the event loop's thread, but for what is handed to the worker.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.engine import limits, tensors, usage
from posttrain.engine.answers import PROTOBUF, failure
from posttrain.engine.checkpoints import Store
from posttrain.engine.durable import unwritten
from posttrain.engine.errors import BusyError, UserError
from posttrain.engine.heap import give_back_pages
from posttrain.engine.lora import LoraConfig
from posttrain.engine.models import Merged, Model, Models, Weights
from posttrain.engine.paths import SAMPLER, session_of
from posttrain.engine.promises import Answer, Promise, Promises
from posttrain.engine.requests import need, optional, read_sample
from posttrain.engine.sample import Request, Result
from posttrain.engine.sampler import Generation
from posttrain.engine.scratch import Scratch
from posttrain.engine.sessions import Session
from posttrain.engine.usage import Usage
from posttrain.engine.wire import write_result
from posttrain.engine.worker import Waiting, Worker

NAMELESS = 256  # samplers without a name that a session keeps: those that were last used
IDLE = 3600.0  # seconds that a sampler in other processes outlives its session, since its last use
Note = Callable[[str, str, str, float], None]  # session, what, sampler, start


@dataclass
class Sampler:
    session: Session
    weights: Weights
    run: str | None  # the training run it comes from; None for a base model
    used: float = field(default_factory=time.monotonic)
    processes: int = 0  # that have joined with a copy of the client

    @property
    def nameless(self) -> bool:
        """Whether it is a snapshot: of training, and no checkpoint."""
        return self.run is not None and self.weights.path is None


class Samplers:
    def __init__(
        self,
        models: Models,
        store: Store,
        promises: Promises,
        worker: Worker,
        used: Usage,
        note: Note,
        dtype: torch.dtype,
        scratch: Scratch,
    ) -> None:
        """`note` is told of every request that has been answered, for the trace.

        `dtype` is what matrices are multiplied in.
        """
        self.models, self.store, self.worker = models, store, worker
        self.promises, self.usage, self.note = promises, used, note
        self.merged = Merged(dtype)
        self.by_id: dict[str, Sampler] = {}
        self.waiting_bytes = 0  # of requests that are not answered yet
        self.scratch = scratch
        self.lock = threading.RLock()  # snapshots are made by the worker, all else by the loop
        self.lent: set[str] = set()  # those that other processes use after their session's end

    def add(self, session: Session, weights: Weights, run: str | None) -> str:
        """Sampler ids are global: a session may hand its samplers to other processes.

        Raises:
            UserError: the session has ended.
        """
        with self.lock:
            if session.ended:
                raise UserError(f"session {session.record.session_id!r} has ended")
            sampler_id = f"{session.record.session_id}:sample:{session.made}"
            session.made += 1
            self.by_id[sampler_id] = Sampler(session, weights, run)
            self.touch(sampler_id)
            for ids, most in ((session.nameless, NAMELESS), (session.samplers, limits.SAMPLERS)):
                while len(ids) > most:
                    self.drop(next(iter(ids)))
        return sampler_id

    def touch(self, sampler_id: str) -> None:
        """Note a use: of a session's samplers the last used are kept."""
        sampler = self.by_id[sampler_id]
        sampler.used, session = time.monotonic(), sampler.session
        for ids in (session.samplers, *([session.nameless] if sampler.nameless else [])):
            ids.pop(sampler_id, None)
            ids[sampler_id] = None

    def drop(self, sampler_id: str) -> None:
        """Forget a sampler and, where they were its own, its weights."""
        sampler = self.by_id.pop(sampler_id)
        sampler.session.samplers.pop(sampler_id, None)
        sampler.session.nameless.pop(sampler_id, None)
        self.lent.discard(sampler_id)
        weights = sampler.weights
        if sampler.nameless and weights.file is not None:
            weights.file.unlink(missing_ok=True)
        if weights.file is not None:  # a base model's stay, as the model does
            self.worker.submit(lambda: self.merged.release(weights.key))

    def end(self, session: Session) -> None:
        """Free what only an ended session's clients could reach."""
        with self.lock:
            for sampler_id in list(session.samplers):
                if self.by_id[sampler_id].processes:
                    self.lent.add(sampler_id)
                else:
                    self.drop(sampler_id)
        self.worker.submit(give_back_pages)

    def tidy(self) -> None:
        """Forget the lent ones that nobody uses any more."""
        now = time.monotonic()
        with self.lock:
            for sampler_id in list(self.lent):
                if now > self.by_id[sampler_id].used + IDLE:
                    self.drop(sampler_id)

    def create(self, session: Session, body: dict[str, Any]) -> str:
        """Of a base model or a checkpoint. Raises UserError where there is none such."""
        path = optional(body, "model_path", str, None)
        if path is None:
            model = self.models.find(need(body, "base_model", str))
            return self.add(session, Weights(f"base {model.name}", model), None)
        checkpoint = self.store.get(path)
        if checkpoint.segment != SAMPLER:
            raise UserError(f"{path} is not for sampling; save_weights_for_sampler writes what is")
        model = self.models.find(checkpoint.base_model)
        file, checksum = self.store.file(checkpoint, "adapter")
        weights = Weights(checkpoint.data, model, file, checkpoint.lora, path, checksum)
        return self.add(session, weights, checkpoint.run)

    def snapshot(
        self, session: Session, state: dict[str, Tensor], model: Model, lora: LoraConfig, run: str
    ) -> str:
        """A new sampler of weights that are not durable. For use in jobs.

        Raises:
            UserError: the session has ended, or the disk is full.
        """
        key = uuid.uuid4().hex
        file = self.scratch.path / f"{key}.safetensors"
        try:
            checksum = tensors.write(file, tensors.pack(state), durable=False)
        except OSError as error:
            raise unwritten("the sampler", error) from error
        try:
            return self.add(session, Weights(key, model, file, lora, checksum=checksum), run)
        except UserError:
            file.unlink(missing_ok=True)
            raise

    def get(self, sampler_id: str) -> Sampler:
        """Raises UserError where there is no such sampler, or no longer."""
        sampler = self.by_id.get(sampler_id)
        if sampler is None:
            raise UserError(
                f"there is no sampler {sampler_id!r}; it ends with its session and with the "
                f"engine, and of those without a name a session keeps the {NAMELESS} last used"
            )
        return sampler

    def join(self, sampler_id: str) -> int:
        """Number another process that uses this sampler, so that request ids differ."""
        sampler = self.get(sampler_id)
        sampler.processes += 1
        return sampler.processes

    def sample(self, body: dict[str, Any], size: int) -> tuple[Promise, int]:
        """The promise of a SampleResponse, and the number of its sequences.

        Args:
            size: bytes of the request's body.

        Raises:
            BusyError: too many requests are waiting.
        """
        sampler_id = need(body, "sampling_session_id", str)
        count, seq_id = optional(body, "num_samples", int, 1), optional(body, "seq_id", int, None)
        old = self.promises.repeated(sampler_id, seq_id)
        if old is not None:
            return old, bounded(count)
        if len(self.worker.waiting) >= limits.SAMPLES:
            raise BusyError(f"{limits.SAMPLES} requests to sample are waiting; the engine is busy")
        if self.waiting_bytes and self.waiting_bytes + size > limits.WAITING_BYTES:
            raise BusyError(f"{self.waiting_bytes} bytes of requests to sample are waiting")
        promise = self.promises.new(sampler_id, seq_id)
        loop, start = asyncio.get_running_loop(), time.time()
        try:
            with self.lock:
                sampler = self.get(sampler_id)
                self.touch(sampler_id)
            if sampler.weights.path is not None:
                self.store.get(sampler.weights.path)  # it may have been deleted, or expired
            weights = sampler.weights
            request = read_sample(body, weights.model)
        except UserError as error:
            self.promises.settle(promise, failure(error))
            return promise, bounded(count)

        def begin() -> Generation:
            return Generation(self.merged.get(weights), weights.model.tokenizer)

        def done(result: Result | Exception) -> None:
            if isinstance(result, Result):
                answer = Answer(write_result(result, request.targets), PROTOBUF)
                self.count(sampler, request, result)
            else:
                answer = failure(result)
            loop.call_soon_threadsafe(settle, answer)

        def settle(answer: Answer) -> None:
            self.waiting_bytes -= size
            self.promises.settle(promise, answer)
            self.note(session_of(sampler_id), "sample", sampler_id, start)

        self.waiting_bytes += size
        self.worker.sample(Waiting(weights.key, weights.model.config, begin, request, done))
        return promise, count

    def count(self, sampler: Sampler, request: Request, result: Result) -> None:
        sampled = sum(len(sample.tokens) for sample in result.samples)
        for kind, tokens in ((usage.PREFILL, len(request.prompt)), (usage.SAMPLED, sampled)):
            name = sampler.weights.model.name
            session_id = sampler.session.record.session_id
            self.usage.add(time.time(), kind, session_id, name, sampler.run, tokens)


def bounded(count: int) -> int:
    """A number of sequence ids to answer with, where the request itself may be refused."""
    return min(max(count, 0), 4096)

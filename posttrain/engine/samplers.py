"""Sampling clients: what they sample from, and their requests.

All methods are for the event loop's thread, but for what is handed to the worker.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.engine import limits, usage
from posttrain.engine.answers import PROTOBUF, failure
from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import BusyError, UserError
from posttrain.engine.lora import LoraConfig
from posttrain.engine.models import Merged, Model, Models, Weights
from posttrain.engine.paths import SAMPLER
from posttrain.engine.promises import Answer, Promise, Promises
from posttrain.engine.requests import need, optional, read_sample
from posttrain.engine.sample import Request, Result
from posttrain.engine.sampler import Generation
from posttrain.engine.sessions import Session
from posttrain.engine.usage import Usage
from posttrain.engine.wire import write_result
from posttrain.engine.worker import Waiting, Worker

NAMELESS = 256  # samplers without a name that a session keeps, however long they are not used
IDLE = 3600.0  # seconds after which older ones are forgotten
Note = Callable[[str, str, str, float], None]  # session, what, sampler, start


@dataclass
class Sampler:
    session_id: str
    weights: Weights
    run: str | None  # the training run it comes from; None for a base model
    used: float = field(default_factory=time.monotonic)
    processes: int = 0  # that have joined with a copy of the client


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
    ) -> None:
        """`note` is told of every request that has been answered, for the trace.

        `dtype` is what matrices are multiplied in.
        """
        self.models, self.store, self.worker = models, store, worker
        self.promises, self.usage, self.note = promises, used, note
        self.merged = Merged(dtype)
        self.by_id: dict[str, Sampler] = {}
        self.waiting_bytes = 0  # of requests that are not answered yet
        # Nameless samplers live as long as the engine. (Killed, it leaves the directory to the
        # system's own cleaning of temporary files.)
        self.scratch = tempfile.TemporaryDirectory(prefix="posttrain-")

    def add(self, session: Session, weights: Weights, run: str | None) -> str:
        """Sampler ids are global: a session may hand its samplers to other processes."""
        sampler_id = f"{session.record.session_id}:sample:{len(session.samplers)}"
        self.by_id[sampler_id] = Sampler(session.record.session_id, weights, run)
        session.samplers.append(sampler_id)
        return sampler_id

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
        file = self.store.file(checkpoint, "adapter")
        weights = Weights(checkpoint.data, model, file, checkpoint.lora, path)
        return self.add(session, weights, checkpoint.run)

    def write_nameless(self, state: dict[str, Tensor], model: Model, lora: LoraConfig) -> Weights:
        """A snapshot that is not durable. For use in jobs."""
        key = uuid.uuid4().hex
        file = Path(self.scratch.name) / f"{key}.safetensors"
        save_file(state, file)
        return Weights(key, model, file, lora)

    def add_nameless(self, session: Session, weights: Weights, run: str) -> str:
        sampler_id = self.add(session, weights, run)
        mine = [self.by_id[key] for key in session.samplers if key in self.by_id]
        nameless = [s for s in mine if s.weights.path is None and s.run is not None]
        for old in nameless[:-NAMELESS]:
            if time.monotonic() > old.used + IDLE and old.weights.file is not None:
                old.weights.file.unlink(missing_ok=True)
        return sampler_id

    def get(self, sampler_id: str) -> Sampler:
        if sampler_id not in self.by_id:
            raise UserError(f"there is no sampler {sampler_id!r}; was the engine restarted?")
        return self.by_id[sampler_id]

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
            sampler = self.get(sampler_id)
            if sampler.weights.path is not None:
                self.store.get(sampler.weights.path)  # it may have been deleted, or expired
            sampler.used = time.monotonic()
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
            self.note(sampler.session_id, "sample", sampler_id, start)

        self.waiting_bytes += size
        self.worker.sample(Waiting(weights.key, weights.model.config, begin, request, done))
        return promise, count

    def count(self, sampler: Sampler, request: Request, result: Result) -> None:
        sampled = sum(len(sample.tokens) for sample in result.samples)
        for kind, tokens in ((usage.PREFILL, len(request.prompt)), (usage.SAMPLED, sampled)):
            name = sampler.weights.model.name
            self.usage.add(time.time(), kind, sampler.session_id, name, sampler.run, tokens)


def bounded(count: int) -> int:
    """A number of sequence ids to answer with, where the request itself may be refused."""
    return min(max(count, 0), 4096)

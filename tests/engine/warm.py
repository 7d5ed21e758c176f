"""Imported by the process that engines are forked from: what the first requests would load."""

from __future__ import annotations

import numpy as np
import torch

import posttrain.engine.server  # noqa: F401
from posttrain.engine.config import DecoderConfig
from posttrain.engine.datum import Datum
from posttrain.engine.lora import LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.sample import Request
from posttrain.engine.sampler import Generation
from posttrain.engine.trainer import AdamParams, Trainer

torch.set_num_threads(1)
decoder = Decoder(DecoderConfig(16, 8, 8, 1, 2, 1, 4, 32)).requires_grad_(False)
trainer = Trainer(decoder, LoraConfig(rank=1))
targets = {"target_tokens": np.array([1, 2]), "weights": np.ones(2, np.float32)}
trainer.forward_backward([Datum(np.array([1, 2]), targets)], "cross_entropy", {})
trainer.optim_step(AdamParams())
generation = Generation(decoder, None)
generation.admit([Request((1, 2), max_tokens=3)])
generation.step()

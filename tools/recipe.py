"""What a base model, a teacher or a judge is made from: shape, corpus, schedule."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.engine.config import DecoderConfig
from tools.corpus import Mixture


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one mixture and one learning-rate schedule."""

    steps: int = 1200
    rows: int = 72  # sequences a batch
    length: int = 256  # tokens a sequence
    learning_rate: float = 3e-3
    warmup: int = 60  # steps
    mixture: Mixture = field(default_factory=Mixture)

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a twentieth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Recipe:
    """A base model: shape, corpus, schedule."""

    name: str
    seed: int = 0
    vocabulary: int = 640  # at most; merging stops earlier when every word is a token
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48
    context: int = 512  # tokens, max_position_embeddings
    weight_decay: float = 0.05
    tokenizer: str = ""  # model whose tokenizer this one has, from the recipe's folder; "": its own
    start: str = ""  # model to go on from, likewise, with all layers or half, ...; "": none
    phases: tuple[Phase, ...] = (Phase(),)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        raw = json.loads(path.read_text())
        phases = raw.pop("phases", [{}])
        for phase in phases:
            phase["mixture"] = Mixture(**phase.get("mixture", {}))
        return cls(**raw, phases=tuple(Phase(**phase) for phase in phases))

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> tuple[Phase, int]:
        """The phase that `step` falls into, and which of its steps it is."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise ValueError("the recipe has no more steps")

    def rate(self, step: int) -> float:
        phase, within = self.phase(step)
        return phase.rate(within)

    def decoder_config(self, vocab_size: int) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
        )

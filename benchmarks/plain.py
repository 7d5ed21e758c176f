"""The same work by `transformers` and PEFT in a plain loop: what the engine is compared with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

from posttrain.engine.config import DecoderConfig

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Plain:
    """W1, W2, W3 and eval, as `benchmarks.engine.Work` defines them, in float32 or bfloat16."""

    def __init__(self, config: DecoderConfig, directory: Path, dtype: torch.dtype) -> None:
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        self.config = config
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        lora = peft.LoraConfig(r=32, lora_alpha=32, target_modules=MATRICES)
        self.model: Any = peft.get_peft_model(model, lora)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.rng = np.random.default_rng(0)

    def tokens(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.integers(1, self.config.vocab_size, shape))

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def w1(self) -> None:
        whole = self.tokens(32, 129)
        logits = self.model(input_ids=whole[:, :-1], use_cache=False).logits.float()
        self.step(torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole[:, 1:].flatten()))

    @torch.inference_mode()
    def generate(self, prompts: torch.Tensor, samples: int, length: int) -> torch.Tensor:
        return self.model.generate(
            input_ids=prompts.repeat_interleave(samples, 0),
            attention_mask=torch.ones(len(prompts) * samples, prompts.shape[1]),
            do_sample=True,
            top_k=0,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=0,
        )

    def w2(self) -> None:
        self.generate(self.tokens(64, 64), 1, 128)

    def w3(self) -> None:
        whole = self.generate(self.tokens(16, 64), 8, 64).clone()
        total = torch.zeros(())
        for part in whole.split(32):
            logits = self.model(input_ids=part[:, :-1], use_cache=False).logits[:, 63:].float()
            logprobs = logits.log_softmax(-1).gather(-1, part[:, 64:, None])[..., 0]
            total = -(logprobs - logprobs.detach()).exp().sum()
            total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def eval(self) -> None:
        self.generate(self.tokens(32, 60), 16, 60)

"""The same work by `transformers` and PEFT in a plain loop."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

from benchmarks.work import END, RANK, RATE, SHAPES, Sizes

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MATRICES)
PART = 32  # sequences in one pass of W3: all at once would be slower, and take four times the room


class Plain:
    """See `benchmarks.work.Driver`. In bfloat16 the adapter stays float32, as PEFT has it."""

    def __init__(self, directory: Path, shape: str, dtype: str) -> None:
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        self.vocabulary = SHAPES[shape][0]
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        self.model: Any = peft.get_peft_model(model, LORA)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)
        self.rng = np.random.default_rng(0)

    def tokens(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.integers(1, self.vocabulary, shape))

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def w1(self, sizes: Sizes) -> None:
        self.sft_loss(self.tokens(sizes.rows, sizes.length + 1)).backward()
        self.step()

    def sft_loss(self, whole: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of `(B, T + 1)` tokens."""
        logits = self.model(input_ids=whole[:, :-1], use_cache=False).logits.float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole[:, 1:].flatten())

    @torch.inference_mode()
    def generate(self, prompts: torch.Tensor, samples: int, length: int) -> torch.Tensor:
        found: torch.Tensor = self.model.generate(
            input_ids=prompts.repeat_interleave(samples, 0),
            attention_mask=torch.ones(len(prompts) * samples, prompts.shape[1]),
            do_sample=True,
            top_k=0,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=END,
        )
        return found

    def w2(self, sizes: Sizes) -> None:
        self.generate(self.tokens(sizes.prompts, sizes.prompt), 1, sizes.new)

    def w3(self, sizes: Sizes) -> None:
        before = sizes.prompt
        whole = self.generate(self.tokens(sizes.groups, before), sizes.group, sizes.answer).clone()
        number = torch.arange(len(whole)) % sizes.group
        advantages = number[:, None] - (sizes.group - 1) / 2
        for part, advantage in zip(whole.split(PART), advantages.split(PART), strict=True):
            logits = self.model(input_ids=part[:, :-1], use_cache=False).logits
            logits = logits[:, before - 1 :].float()
            logprobs = logits.log_softmax(-1).gather(-1, part[:, before:, None])[..., 0]
            (-((logprobs - logprobs.detach()).exp() * advantage).sum()).backward()
        self.step()

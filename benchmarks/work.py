"""The four pieces of work, and the models that they are done with.

W1 SFT step: sequences, forward, backward and Adam, LoRA rank 32 on the seven matrices of a layer.
W2 sampling: different prompts, one answer each, temperature 1.
W3 RL step: prompts, a group of answers each, then one policy-gradient step on them.
W4 from the start of a process to its first finished SFT step.

The models are random Qwen3 decoders in Hugging Face format. The end of a sequence cannot be drawn,
so everyone generates exactly the tokens that were asked for. `python -m benchmarks.work DIRECTORY`
writes them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

WORKS = ("W1", "W2", "W3", "W4")
RANK = 32
END = 0  # the token that cannot be drawn
RATE = 1e-4  # of Adam


@dataclass(frozen=True)
class Sizes:
    """How much of each; lengths in tokens."""

    rows: int = 32  # W1: sequences
    length: int = 128
    prompts: int = 64  # W2: different prompts
    prompt: int = 64  # W2 and W3: length of a prompt
    new: int = 128  # W2: length of an answer
    groups: int = 16  # W3: different prompts
    group: int = 8  # answers to each
    answer: int = 64  # length of an answer

    def tokens(self, work: str) -> int:
        """What a rate counts: tokens trained in W1, sampled in W2, in W3 both, once each."""
        known = {
            "W1": self.rows * self.length,
            "W2": self.prompts * self.new,
            "W3": self.groups * self.group * self.answer,
        }
        if work not in known:
            raise ValueError(f"{work!r} has no rate; those that have one: {', '.join(known)}")
        return known[work]


FULL = Sizes()
QUICK = Sizes(rows=4, length=32, prompts=4, prompt=16, new=8, groups=2, group=4, answer=8)


LONG = 5.0  # seconds


def enough(times: list[float], budget: float) -> bool:
    """Whether these repetitions (seconds each) suffice.

    The first one warms up, and others follow until they have taken `budget` seconds together. A
    first one of more than LONG is the measurement itself: beside it, warming up is nothing.
    """
    long = bool(times) and times[0] > LONG
    return long or (len(times) > 1 and sum(times[1:]) >= budget)


def counted(times: list[float]) -> list[float]:
    """Those that are reported."""
    return times[1:] or times


class Driver(Protocol):
    """Somebody who can do the work, with a model and an optimizer ready. Each call does it once."""

    def w1(self, sizes: Sizes) -> None: ...
    def w2(self, sizes: Sizes) -> None: ...
    def w3(self, sizes: Sizes) -> None: ...


# vocabulary, hidden, intermediate, layers, heads, key-value heads, head dimension, context
SHAPES = {
    "tiny": (1024, 256, 768, 6, 8, 4, 32, 1024),
    "small": (1024, 512, 1024, 8, 8, 4, 64, 1024),
    "base": (424, 192, 512, 5, 4, 2, 48, 512),  # of models/base
}


def word(token: int) -> str:
    """The text of a token: every text of such words has exactly that many tokens."""
    return f"w{token}"


def write_model(directory: Path, shape: str) -> None:
    """Random weights. One coordinate of the residual stream says "not the end" to the head."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from posttrain.engine.config import DecoderConfig
    from posttrain.engine.model import Decoder

    config = DecoderConfig(*SHAPES[shape])
    torch.manual_seed(0)
    decoder = Decoder(config)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1 if "embed" in name else 0.04)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[0] = 0.0
        embedding = decoder.model.embed_tokens.weight
        embedding[:, 0] = 6.0
        embedding[END, 0] = -6.0
    decoder.save(directory, torch.float32)
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**raw, "eos_token_id": END}))
    words = {word(token): token for token in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word(END)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = word(END)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=end, eos_token=end, pad_token=end
    ).save_pretrained(directory)


def main() -> None:
    folder = Path(sys.argv[1])
    for shape in ("tiny", "small"):
        directory = folder / shape
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory, shape)


if __name__ == "__main__":
    main()

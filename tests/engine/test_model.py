"""The decoder against `transformers`, and its adapters against `peft`, on the same weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Qwen3ForCausalLM

from posttrain.engine.config import DecoderConfig
from posttrain.engine.lora import ALPHA, Adapter, LoraConfig
from posttrain.engine.model import Decoder
from tests.conftest import TINY
from tests.engine.reference import merged as merged_into


def pair(directory: Path, tied: bool) -> tuple[Decoder, Qwen3ForCausalLM]:
    """The same random weights in both implementations."""
    torch.manual_seed(1)
    source = Decoder(replace(TINY, tie_word_embeddings=tied))
    for name, parameter in source.named_parameters():
        if "norm" in name:  # at their initial value of one, a forgotten norm weight would hide
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    source.save(directory, torch.float32)
    theirs = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return Decoder.load(directory), theirs


def filled(decoder: Decoder, config: LoraConfig) -> Adapter:
    """An adapter whose B is not zero, so that it changes the model."""
    adapter = Adapter.fresh(decoder.linear_shapes(), config)
    generator = torch.Generator().manual_seed(7)
    for _, b in adapter.factors.values():
        b.data.normal_(std=0.1, generator=generator)
    return adapter


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tmp_path: Path, tied: bool) -> None:
    ours, theirs = pair(tmp_path, tied)
    tokens = torch.randint(0, TINY.vocab_size, (3, 17))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(tokens)), theirs(tokens).logits, atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("tied", [True, False])
def test_adapter_gradients_are_those_of_peft(tmp_path: Path, tied: bool) -> None:
    ours, theirs = pair(tmp_path, tied)
    config = LoraConfig(rank=4, seed=3, train_unembed=not tied)
    adapter = filled(ours, config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if not tied:
        targets.append("lm_head")
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, lora_alpha=int(ALPHA), target_modules=targets)
    )
    modules: Any = dict(theirs.named_modules())  # peft has put its layers into it
    for path, (a, b) in adapter.factors.items():
        modules[path].lora_A["default"].weight.data.copy_(a.data)
        modules[path].lora_B["default"].weight.data.copy_(b.data)
    tokens = torch.randint(0, TINY.vocab_size, (2, 11))
    logits = ours.logits(ours(tokens, adapter=adapter), adapter)
    torch.testing.assert_close(logits, wrapped(tokens).logits, atol=1e-4, rtol=1e-4)
    logits.log_softmax(-1)[..., 5].sum().backward()
    wrapped(tokens).logits.log_softmax(-1)[..., 5].sum().backward()
    for path, (a, b) in adapter.factors.items():
        for mine, theirs_ in ((a, modules[path].lora_A), (b, modules[path].lora_B)):
            grad = theirs_["default"].weight.grad
            torch.testing.assert_close(mine.grad, grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_adapter_computes_the_same(tmp_path: Path, tied: bool) -> None:
    decoder, _ = pair(tmp_path, tied)
    adapter = filled(decoder, LoraConfig(rank=4))
    tokens = torch.randint(0, TINY.vocab_size, (2, 9))
    merged = merged_into(decoder, adapter)
    expected = decoder.logits(decoder(tokens, adapter=adapter), adapter)
    torch.testing.assert_close(merged.logits(merged(tokens)), expected, atol=1e-4, rtol=1e-4)
    assert merged.model.embed_tokens.weight is decoder.model.embed_tokens.weight


def test_fresh_adapter_changes_nothing_and_depends_on_its_seed_only(tmp_path: Path) -> None:
    decoder, _ = pair(tmp_path, True)
    one = Adapter.fresh(decoder.linear_shapes(), LoraConfig(rank=4, seed=5))
    two = Adapter.fresh(decoder.linear_shapes(), LoraConfig(rank=4, seed=5))
    assert all(torch.equal(one.state()[name], two.state()[name]) for name in one.state())
    tokens = torch.randint(0, TINY.vocab_size, (1, 9))
    assert torch.equal(decoder(tokens, adapter=one), decoder(tokens))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_configs_that_would_be_computed_wrongly_are_refused(
    change: dict[str, object], complaint: str
) -> None:
    raw = TINY.to_hf()
    raw.pop("rope_parameters")
    with pytest.raises(ValueError, match=complaint):
        DecoderConfig.from_hf(raw | change)


def test_an_empty_decoder_costs_no_imports() -> None:
    """The compiler, which torch imports for some operations without storage, takes seconds."""
    code = (
        "import sys; from posttrain.engine.model import Decoder; from tests.conftest import TINY; "
        "before = 'sympy' in sys.modules; Decoder.empty(TINY); "
        "print(before, 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Decoder.load(tmp_path)

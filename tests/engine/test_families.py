"""Every family against `transformers` and `peft`, on random checkpoints that these have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from posttrain.engine.attention import ForestAttention
from posttrain.engine.config import DecoderConfig
from posttrain.engine.forest import Forest, Group
from posttrain.engine.lora import ALPHA, LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.rope import RopeScaling, frequencies
from posttrain.engine.sample import Request
from posttrain.engine.sampler import Generation
from posttrain.engine.stops import Stops
from tests.engine.test_model import filled

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
# Of the four wavelengths of head_dim 8 one is kept, one is blended and two are stretched.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen2, untied": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3, biases": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True},
    "llama 3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama, untied, one head a group": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "num_key_value_heads": 4,
    },
    "llama, biases, wide heads": {"model_type": "llama", "attention_bias": True, "head_dim": 12},
    "llama, linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False},
    "mistral, wide window": {"model_type": "mistral", "sliding_window": 64},
}
cases = pytest.mark.parametrize("case", CASES)


def checkpoint(directory: Path, case: str, *, shard: str = "50GB") -> Any:
    """A random model of `transformers`, saved to `directory`, in float32."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(SHAPE | CASES[case])))
    for name, parameter in model.named_parameters():
        if "norm" in name:  # at their initial values, a forgotten norm or bias would hide
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory, max_shard_size=shard)
    return model.eval()


def tokens_of(rows: int = 3, length: int = 40) -> Tensor:
    return torch.randint(0, 260, (rows, length), generator=torch.Generator().manual_seed(3))


def packed_logits(packed: Packed, tokens: Tensor) -> Tensor:
    """`(B, T, V)` as training and prefill compute them, for `tokens` `(B, T)`."""
    groups = [Group((row,), tokens.shape[1]) for row in range(len(tokens))]
    forest = Forest.plant(list(tokens.numpy()), groups, packed.device)
    attend = ForestAttention(forest, packed.dtype)
    hidden = packed.hidden(forest.tokens, forest.positions, attend)
    return packed.logits(hidden).view(*tokens.shape, -1)


@cases
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_logits_are_those_of_transformers(tmp_path: Path, case: str, shard: str) -> None:
    theirs = checkpoint(tmp_path, case, shard=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "50GB")
    ours = Decoder.load(tmp_path)
    tokens = tokens_of()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(tokens)), theirs(tokens).logits, atol=2e-5, rtol=0
        )


@cases
@pytest.mark.parametrize("adapted", [False, True])
def test_packed_weights_compute_what_the_decoder_computes(
    tmp_path: Path, case: str, adapted: bool
) -> None:
    checkpoint(tmp_path, case)
    decoder, tokens = Decoder.load(tmp_path), tokens_of()
    adapter = filled(decoder, LoraConfig(rank=4, seed=3)) if adapted else None
    with torch.no_grad():
        expected = decoder.logits(decoder(tokens, adapter=adapter), adapter)
        found = packed_logits(Packed(decoder, adapter), tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@cases
@pytest.mark.parametrize("packed", [False, True])
def test_adapter_gradients_are_those_of_peft(tmp_path: Path, case: str, packed: bool) -> None:
    theirs = checkpoint(tmp_path, case)
    ours = Decoder.load(tmp_path)
    adapter = filled(ours, LoraConfig(rank=4, seed=3))
    targets = sorted({path.rpartition(".")[2] for path in adapter.factors})
    assert len(targets) == 8
    config = peft.LoraConfig(r=4, lora_alpha=int(ALPHA), target_modules=targets)
    wrapped = peft.get_peft_model(theirs, config)
    modules: Any = dict(theirs.named_modules())
    for path, (a, b) in adapter.factors.items():
        modules[path].lora_A["default"].weight.data.copy_(a.data)
        modules[path].lora_B["default"].weight.data.copy_(b.data)
    tokens = tokens_of(2, 17)
    if packed:
        mine = packed_logits(Packed(ours, adapter), tokens)
    else:
        mine = ours.logits(ours(tokens, adapter=adapter), adapter)
    for logits in (mine, wrapped(tokens).logits):
        scores = logits[:, :-1].log_softmax(-1)
        scores.gather(-1, tokens[:, 1:, None]).sum().backward()
    for path, pair in adapter.factors.items():
        factor: Any
        for factor, letter in zip(pair, ("lora_A", "lora_B"), strict=True):
            grad = getattr(modules[path], letter)["default"].weight.grad
            assert (factor.grad - grad).norm() <= 1e-5 * grad.norm(), (path, letter)


@cases
def test_greedy_samples_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    theirs = checkpoint(tmp_path, case)
    ours = Decoder.load(tmp_path)
    prompt = tokens_of(1, 9)
    generation = Generation(ours, None)
    request = Request(
        tuple(prompt[0].tolist()), max_tokens=20, temperature=0.0, stops=Stops(frozenset())
    )
    (result,) = generation.admit([request])
    while result.unfinished:
        generation.step()
    wanted = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert result.samples[0].tokens == wanted[0, 9:].tolist()


@cases
def test_what_is_saved_is_the_same_model_to_transformers(tmp_path: Path, case: str) -> None:
    theirs = checkpoint(tmp_path / "a", case)
    Decoder.load(tmp_path / "a").save(tmp_path / "b", torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    assert type(again) is type(theirs)
    tokens = tokens_of()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_silent_config_means_what_it_means_to_transformers(kind: str) -> None:
    raw = SHAPE | {"num_attention_heads": 32, "hidden_size": 128, "max_position_embeddings": 4096}
    del raw["num_key_value_heads"], raw["tie_word_embeddings"]
    theirs = AutoConfig.for_model(kind, **raw)
    ours = DecoderConfig.from_hf(raw | {"model_type": kind})
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 128 // 32)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("old", [{"type": "linear"}, {"rope_type": "linear"}])
def test_configs_of_older_transformers_are_read(tmp_path: Path, old: dict[str, Any]) -> None:
    """`rope_theta` and `rope_scaling` at the top, `head_dim` absent, fields as SmolLM2 has them."""
    checkpoint(tmp_path, "llama 3")
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    del raw["rope_parameters"], raw["head_dim"]
    raw |= {"rope_theta": 700.0, "rope_scaling": old | {"factor": 2.0}, "pretraining_tp": 1}
    raw |= {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}}
    path.write_text(json.dumps(raw))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = Decoder.load(tmp_path)
    assert ours.config.rope_scaling == RopeScaling(
        "linear", 2.0, original_max_position_embeddings=64
    )
    tokens = tokens_of()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(tokens)), theirs(tokens).logits, atol=2e-5, rtol=0
        )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1_000_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        LLAMA3
        | {"rope_theta": 500_000.0, "factor": 32.0, "original_max_position_embeddings": 8192},
    ],
)
@pytest.mark.parametrize("head_dim", [48, 64, 128])
def test_frequencies_are_the_bits_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    shape = SHAPE | {"head_dim": head_dim, "max_position_embeddings": 131_072}
    config: Any = AutoConfig.for_model("llama", **shape, rope_parameters=rope)
    theirs = LlamaRotaryEmbedding(config)
    ours = frequencies(head_dim, rope["rope_theta"], RopeScaling.from_hf(rope, 131_072))
    assert torch.equal(ours, theirs.inv_freq)


ACCEPTED: list[dict[str, Any]] = [
    {"model_type": "mistral", "sliding_window": None},
    {"model_type": "mistral", "sliding_window": 64},
    {"model_type": "mistral"},  # the window is 4096 where the config is silent
    {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8},
    {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096},
    {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
    },
    {"model_type": "qwen3", "layer_types": ["full_attention", "full_attention"]},
    {"model_type": "llama", "hidden_act": "silu", "mlp_bias": False, "quantization_config": None},
    {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_scaling": None},
]


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_fields_that_change_nothing_are_accepted(change: dict[str, Any]) -> None:
    assert DecoderConfig.from_hf(SHAPE | change).model_type == change["model_type"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "model_type 'gpt2' .* known: qwen2, qwen3, llama, mistral"),
    ({"model_type": None}, "model_type None .* known: qwen2"),
    ({"model_type": "mistral", "max_position_embeddings": 8192}, "sliding_window 4096, shorter"),
    ({"model_type": "mistral", "sliding_window": 8}, "sliding_window 8, .* known: null or at"),
    (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8,
         "max_window_layers": 1},
        "sliding_window 8, shorter",
    ),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types sliding_attention"),
    ({"model_type": "llama", "mlp_bias": True}, "mlp_bias true, .* known: false"),
    ({"hidden_act": "gelu"}, "hidden_act gelu, .* known: silu"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention alone"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' .* known: default, linear, llama3"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "needs the number .low_freq"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "factor 0.0, which is not positive"),
    (
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}},
        "low_freq_factor 0.5 and high_freq_factor 0.5",
    ),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config .*fp8"),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, "known: Qwen3ForCausalLM"),
    ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "auto_map, code of its own"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    ({"hidden_size": None}, "hidden_size null, not a positive integer"),
    ({"head_dim": 7}, "head_dim is 7"),
    ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "complaint"), REFUSED, ids=str)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    change: dict[str, Any], complaint: str
) -> None:
    raw = SHAPE | {"model_type": "qwen3", "head_dim": 8} | change
    with pytest.raises(ValueError, match=complaint) as caught:
        DecoderConfig.from_hf(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [None, [], {"model_type": "gpt2"}, {"rms_norm_eps": None}, {"rope_scaling": 3},
               {"model_type": "mistral", "sliding_window": "4096"}],
)  # fmt: skip
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, change: Any) -> None:
    raw: Any = SHAPE | {"model_type": "qwen3"} | change if isinstance(change, dict) else change
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw) if change is not None else "{")
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        Decoder.load(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@cases
def test_nothing_is_computed_on_another_device_than_the_weights(tmp_path: Path, case: str) -> None:
    """On the meta device a tensor that is made on the CPU by accident raises."""
    checkpoint(tmp_path, case)
    decoder = Decoder.load(tmp_path, device="meta")
    assert {tensor.device.type for tensor in decoder.state_dict().values()} == {"meta"}
    assert decoder.frequencies.device.type == "meta"
    hidden = decoder(tokens_of().to("meta"))
    assert decoder.logits(hidden).shape == (3, 40, 260)

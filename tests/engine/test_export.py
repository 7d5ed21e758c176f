"""Exported checkpoints compute, in `peft` and in `transformers`, what the engine computes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tinker
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from posttrain import cli
from posttrain.engine.checkpoints import Store
from posttrain.engine.errors import UserError
from posttrain.engine.export import (
    base_directory,
    base_name,
    export_adapter,
    export_merged,
    find,
)
from posttrain.engine.lora import Adapter, LoraConfig
from posttrain.engine.model import Decoder
from posttrain.engine.packed import Packed
from posttrain.engine.paths import WEIGHTS
from posttrain.engine.records import RunRecord
from posttrain.engine.shards import SINGLE, weight_files
from tests.conftest import KEY, start_engine, write_tokenizer
from tests.engine.reference import merged as merged_into
from tests.engine.test_families import checkpoint as random_model
from tests.engine.test_families import packed_logits, tokens_of
from tests.engine.test_model import filled

RUN = "abc:train:0"
PATH = f"tinker://{RUN}/weights/one"
KINDS = [("llama 3", "50GB"), ("qwen2, untied", "20KB"), ("qwen3", "20KB")]
kinds = pytest.mark.parametrize(("case", "shard"), KINDS)


def saved(
    tmp_path: Path, case: str, shard: str, **lora: Any
) -> tuple[Path, Path, Decoder, Adapter]:
    """A base model, a home with a checkpoint `one` of an adapter on it, and both in the engine."""
    base, home = tmp_path / "base", tmp_path / "home"
    random_model(base, case, shard=shard)
    write_tokenizer(base)
    decoder = Decoder.load(base)
    config = LoraConfig(**({"rank": 4} | lora))
    adapter = filled(decoder, config)
    record = RunRecord(RUN, "mine/model", config, base_directory=str(base))
    store = Store(home)
    store.add_run(record)
    store.save(record, WEIGHTS, "one", {"adapter": adapter.state()})
    return base, home, decoder, adapter


def logits_of(decoder: Decoder, adapter: Adapter | None = None) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(tokens_of(), adapter=adapter), adapter)


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens_of()).logits


@kinds
def test_peft_computes_the_same_with_an_exported_adapter(
    tmp_path: Path, case: str, shard: str
) -> None:
    base, home, decoder, adapter = saved(tmp_path, case, shard)
    record, checkpoint, found = find(home, PATH)
    out = tmp_path / "out"
    export_adapter(checkpoint, found, out, base_name(record, {}))
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    name = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == str(base)
    plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    before = theirs(plain)
    wrapped = peft.PeftModel.from_pretrained(plain, str(out))
    expected = logits_of(decoder, adapter)
    torch.testing.assert_close(theirs(wrapped), expected, atol=1e-4, rtol=0)
    assert (expected - before).abs().max() > 0.1  # the adapter does something


@kinds
def test_transformers_computes_the_same_with_a_merged_model(
    tmp_path: Path, case: str, shard: str
) -> None:
    base, home, decoder, adapter = saved(tmp_path, case, shard)
    _, checkpoint, found = find(home, PATH)
    out = tmp_path / "out"
    export_merged(checkpoint, found, out, base)
    assert [p.name for p in weight_files(out)] == [p.name for p in weight_files(base)]
    expected = logits_of(decoder, adapter)
    again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(theirs(again), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(Decoder.load(out)), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        logits_of(Decoder.load(out)), logits_of(merged_into(decoder, adapter)), atol=2e-5, rtol=0
    )
    with torch.no_grad():
        packed = packed_logits(Packed(decoder, adapter), tokens_of())
    torch.testing.assert_close(theirs(again), packed, atol=1e-4, rtol=0)
    text = "What is exported reads as before."
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(base)(text).input_ids


def test_embedding_and_unembedding_part_only_where_the_adapter_parts_them(tmp_path: Path) -> None:
    for trained in (True, False):
        base, home, decoder, adapter = saved(
            tmp_path / str(trained), "llama 3", "20KB", train_unembed=trained
        )
        _, checkpoint, found = find(home, PATH)
        out = tmp_path / str(trained) / "out"
        export_merged(checkpoint, found, out, base)
        config = json.loads((out / "config.json").read_text())
        assert config["tie_word_embeddings"] is not trained
        again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        torch.testing.assert_close(theirs(again), logits_of(decoder, adapter), atol=1e-4, rtol=0)
        assert torch.equal(
            again.model.embed_tokens.weight, decoder.model.embed_tokens.weight
        )  # an input is read as before


def test_an_adapter_of_attention_alone_is_one_in_peft(tmp_path: Path) -> None:
    base, home, decoder, adapter = saved(
        tmp_path, "qwen2", "50GB", rank=8, train_mlp=False, train_unembed=False
    )
    _, checkpoint, found = find(home, PATH)
    export_adapter(checkpoint, found, tmp_path / "out", str(base))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"]) == (8, 32)
    wrapped = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(theirs(wrapped), logits_of(decoder, adapter), atol=1e-4, rtol=0)


def test_merged_weights_have_the_dtype_of_the_base_or_the_given_one(tmp_path: Path) -> None:
    base, home, decoder, adapter = saved(tmp_path, "qwen3", "50GB")
    state = {name: tensor.bfloat16() for name, tensor in load_file(base / SINGLE).items()}
    save_file(state, base / SINGLE, metadata={"format": "pt"})
    decoder = Decoder.load(base)  # in bfloat16's values now
    _, checkpoint, found = find(home, PATH)
    export_merged(checkpoint, found, tmp_path / "half", base)
    export_merged(checkpoint, found, tmp_path / "full", base, torch.float32)
    halves, fulls = (load_file(tmp_path / name / SINGLE) for name in ("half", "full"))
    merged = merged_into(decoder, adapter)
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(fulls[name], parameter.data, atol=1e-6, rtol=0)
        assert torch.equal(halves[name], fulls[name].bfloat16())
    assert json.loads((tmp_path / "full/config.json").read_text())["dtype"] == "float32"
    with safe_open(tmp_path / "full" / SINGLE, framework="pt") as file:
        assert file.metadata()["checkpoint"] == PATH


def test_an_output_that_is_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    base, home, _, _ = saved(tmp_path, "llama 3", "50GB")
    _, checkpoint, found = find(home, PATH)
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    for path in (full / "notes.txt", file):
        path.write_text("mine")
    for out, said in ((full, "is not empty"), (file, "is a file")):
        with pytest.raises(UserError, match=f"{out} {said}"):
            export_adapter(checkpoint, found, out, str(base))
        with pytest.raises(UserError, match=f"{out} {said}"):
            export_merged(checkpoint, found, out, base)
    assert (full / "notes.txt").read_text() == file.read_text() == "mine"
    export_adapter(checkpoint, found, empty, str(base))
    modes = {path.stat().st_mode & 0o777 for path in empty.iterdir()}
    assert modes == {empty.stat().st_mode & 0o666}  # as readable as any file that is made here


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, home, _, _ = saved(tmp_path, "qwen2, untied", "20KB")
    _, checkpoint, found = find(home, PATH)
    before = sorted(tmp_path.iterdir())

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("posttrain.engine.export.save_file", full)
    with pytest.raises(OSError, match="no space"):
        export_merged(checkpoint, found, tmp_path / "out", base)
    assert sorted(tmp_path.iterdir()) == before


def damage(home: Path, how: str) -> None:
    store = Store(home)
    file, _ = store.file(store.get(PATH), "adapter")
    state = load_file(file)
    description = store.description(RUN, WEIGHTS, "one")
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    elif how == "half a pair":
        del state["lm_head.lora_B"]
        save_file(state, file)
    elif how == "rank":
        state["lm_head.lora_A"] = torch.zeros(3, 32)
        save_file(state, file)
    elif how == "empty":
        save_file({}, file)
    elif how == "no json":
        description.write_text("{")
    elif how == "other json":
        description.write_text('{"run": "x"}')


@pytest.mark.parametrize(
    "how", ["gone", "cut", "half a pair", "rank", "empty", "no json", "other json"]
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, how: str) -> None:
    _, home, _, _ = saved(tmp_path, "llama 3", "50GB")
    damage(home, how)
    with pytest.raises(UserError, match=f"checkpoint {PATH} is damaged: ") as caught:
        find(home, PATH)
    assert "\n" not in str(caught.value)


def test_an_unknown_checkpoint_lists_those_there_are(tmp_path: Path) -> None:
    _, home, _, _ = saved(tmp_path, "llama 3", "50GB")
    with pytest.raises(UserError, match="weights/two does not exist; there are: one"):
        find(home, f"tinker://{RUN}/weights/two")
    with pytest.raises(UserError, match="sampler_weights/one does not exist; the run has none"):
        find(home, f"tinker://{RUN}/sampler_weights/one")
    with pytest.raises(UserError, match="is not a checkpoint path"):
        find(home, "../../etc/passwd")
    with pytest.raises(UserError, match="nowhere holds no checkpoints"):
        find(tmp_path / "nowhere", PATH)
    assert not (tmp_path / "nowhere").exists()


def test_the_base_model_is_found_or_asked_for(tmp_path: Path) -> None:
    base, home, _, _ = saved(tmp_path, "llama 3", "50GB")
    record, _, _ = find(home, PATH)
    assert base_directory(record, {}) == base
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"mine/model of abc:train:0 is no longer at .*base; pass"):
        base_directory(record, {})
    assert base_directory(record, {"mine/model": tmp_path}) == tmp_path
    assert base_name(record, {"mine/model": tmp_path}) == str(tmp_path)
    cached = "/x/models--Qwen--Qwen3-0.6B/snapshots/0123"
    of_hub = RunRecord(RUN, "qwen", LoraConfig(), base_directory=cached)
    assert base_name(of_hub, {}) == "Qwen/Qwen3-0.6B"
    old = RunRecord(RUN, "old", LoraConfig())
    assert base_name(old, {}) == "old"
    with pytest.raises(UserError, match="old of abc:train:0 is unknown; pass --base"):
        base_directory(old, {})


def test_another_base_than_the_trained_one_is_refused(tmp_path: Path) -> None:
    _, home, _, _ = saved(tmp_path, "llama 3", "50GB")
    _, checkpoint, found = find(home, PATH)
    other = tmp_path / "other"
    random_model(other, "llama, biases, wide heads")
    with pytest.raises(UserError, match=r"it adapts model\.layers\.0\.self_attn\.k_proj of shape"):
        export_merged(checkpoint, found, tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


def test_from_training_over_the_api_to_a_model_of_transformers(tmp_path: Path) -> None:
    """The command line exports what an engine has saved; nothing but its home is shared."""
    base, home = tmp_path / "base", tmp_path / "home"
    random_model(base, "qwen2, untied", shard="20KB")
    write_tokenizer(base)
    process, url = start_engine(base, home, "--parent", str(os.getpid()))
    try:
        service = tinker.ServiceClient(base_url=url, api_key=KEY)
        policy = service.create_lora_training_client("posttrain/tiny", rank=4, seed=1).result()
        tokens = tokens_of(1, 24)[0].tolist()
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:])),
                "weights": tinker.TensorData.from_numpy(np.ones(23, np.float32)),
            },
        )  # fmt: skip
        policy.forward_backward([datum], "cross_entropy").result()
        policy.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
        path = policy.save_weights_for_sampler("final").result().path
        state = policy.save_state("state").result().path
        sampler = service.create_sampling_client(model_path=path).result()
        prompt = tinker.ModelInput.from_ints(tokens)
        scores = torch.tensor(sampler.compute_logprobs(prompt).result()[1:])
        assert policy.get_info().model_data.arch == "qwen2"
    finally:
        process.terminate()
        process.wait()
    runner = CliRunner()
    for arguments in (
        [path, str(tmp_path / "merged"), "--merge"],
        [state, str(tmp_path / "adapter")],
    ):
        done = runner.invoke(cli.app, ["export", *arguments, "--home", str(home)])
        assert done.exit_code == 0, done.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    wrapped = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", dtype=torch.float32
    )
    given = torch.tensor([tokens])
    for model in (merged, wrapped):
        with torch.no_grad():
            found = model(given).logits[0, :-1].log_softmax(-1)
        found = found.gather(-1, given[0, 1:, None])[:, 0]
        torch.testing.assert_close(found, scores, atol=1e-4, rtol=0)
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = untrained(given).logits[0, :-1].log_softmax(-1).gather(-1, given[0, 1:, None])
    assert scores.sum() > before.sum() + 1

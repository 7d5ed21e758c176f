"""A tiny random model, and one embedded engine that the whole test session shares."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: the tests share two cores with each other's processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TINKER_TELEMETRY"] = "0"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

import pytest
import tinker
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.connect import connect
from posttrain.engine.config import DecoderConfig
from posttrain.engine.model import Decoder

# Timings on a shared machine say nothing, and a test must not fail today and pass tomorrow.
settings.register_profile("lab", deadline=None, derandomize=True)
settings.load_profile("lab")

TINY = DecoderConfig(
    vocab_size=260,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)
KEY = "tml-test"
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


def write_tokenizer(directory: Path) -> None:
    """Every byte is a token, and token 256 ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = CHAT
    fast.save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: a random Qwen3 with a tokenizer of bytes."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    Decoder(TINY).save(directory, torch.float32)
    write_tokenizer(directory)
    return directory


def start_engine(model: Path, state: Path, *more: str) -> tuple[subprocess.Popen[bytes], str]:
    """An engine process serving `model` as posttrain/tiny, and its URL."""
    ready = state / f"ready-{time.monotonic_ns()}"
    state.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "posttrain.engine", "--state", str(state)]
    command += ["--model", f"posttrain/tiny={model}", "--ready", str(ready), "--threads", "1"]
    command += ["--device", "cpu"]
    process = subprocess.Popen(
        [*command, *more],
        env={**os.environ, "POSTTRAIN_ENGINE_KEY": KEY},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 180
    while not ready.exists():
        assert process.poll() is None, "the engine ended while starting"
        assert time.monotonic() < end, "the engine did not start within three minutes"
        time.sleep(0.05)
    return process, ready.read_text()


@pytest.fixture(scope="session")
def engine_url(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = tmp_path_factory.mktemp("state")
    process, url = start_engine(tiny_model_dir, state, "--parent", str(os.getpid()))
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def service(engine_url: str) -> Iterator[tinker.ServiceClient]:
    client = tinker.ServiceClient(base_url=engine_url, api_key=KEY)
    yield client
    client.close("success")


@pytest.fixture(scope="session")
def base_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tinker.ServiceClient]:
    """The embedded engine over the shipped models, with a state directory of its own."""
    saved = dict(os.environ)
    os.environ["POSTTRAIN_HOME"] = str(tmp_path_factory.mktemp("home"))
    for name in ("TINKER_BASE_URL", "TINKER_API_KEY", "POSTTRAIN_ENGINE_URL"):
        os.environ.pop(name, None)
    yield connect(quiet=True)
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def policy(base_service: tinker.ServiceClient) -> tinker.TrainingClient:
    """A fresh adapter on the shipped base model."""
    return base_service.create_lora_training_client("posttrain/base", rank=8, seed=0).result()

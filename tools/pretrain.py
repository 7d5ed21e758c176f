"""Pretrain a small base model from a recipe: `python tools/pretrain.py models/base/recipe.json`.

Everything the run does follows from the recipe: the tokenizer is trained on the first documents
of the corpus, batch `i` is a function of the seed and `i`, and a run that was interrupted goes
on from its last checkpoint in `--work`. At the end the model is exported in Hugging Face format
beside the recipe, with `training.json`, which says how long it took.

A recipe may take the tokenizer of another model, which a teacher and a judge must share with the
model they are for, and may start from its weights: `"tokenizer": "../base"`, `"start": "../base"`.
"""

from __future__ import annotations

import os

# Threads that wait must sleep: spinning, they stall the run whenever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import dataclasses
import itertools
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from posttrain.engine.model import Decoder
from tools.corpus import documents
from tools.recipe import Recipe

SPECIAL = ("<|pad|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer_of(recipe: Recipe, folder: Path) -> PreTrainedTokenizerFast:
    """The recipe's tokenizer: that of another model, or a new one.

    Raises:
        ValueError: the other model has no tokenizer; the text says where it was looked for.
    """
    if not recipe.tokenizer:
        return train_tokenizer(recipe)
    other = folder / recipe.tokenizer
    if not (other / "tokenizer.json").exists():
        raise ValueError(f"the recipe takes its tokenizer from {other}, where there is none")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(other, model_max_length=recipe.context)
    for where in ("is_local", "local_files_only"):  # how it was loaded is none of the new model's
        tokenizer.init_kwargs.pop(where, None)
    return tokenizer


def train_tokenizer(recipe: Recipe, sample: int = 20_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    words = Regex(r" ?[A-Za-z]+|\d|[^A-Za-z\d]")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = itertools.islice(documents(recipe.seed, recipe.phases[0].mixture), sample)
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|endoftext|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
        model_max_length=recipe.context,
    )


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[Tensor]:
    """Batches `(rows, length + 1)` from number `start` on; batch i depends on i alone.

    Whole documents are packed into rows, each into the first that has room for it, and shuffled
    there: long ones would otherwise come first in most rows. What stays free is padding, which
    carries no loss.
    """
    vocabulary = tokenizer.get_vocab()
    pad, end = vocabulary["<|pad|>"], vocabulary["<|endoftext|>"]
    for step in range(start, recipe.steps):
        phase, _ = recipe.phase(step)
        width = phase.length + 1
        source = documents((recipe.seed << 32) + step + 1, phase.mixture)
        rows: list[list[list[int]]] = [[] for _ in range(phase.rows)]
        free = [width] * phase.rows
        offered = 1.2 * phase.rows * width  # tokens; more than there is room for, to fill the gaps
        while offered > 0:
            texts = list(itertools.islice(source, 16))
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                offered -= len(ids) + 1
                at = next((i for i, room in enumerate(free) if room > len(ids)), None)
                if at is not None:
                    rows[at].append([*ids, end])
                    free[at] -= len(ids) + 1
        shuffle = random.Random(step)
        batch = torch.full((phase.rows, width), pad)
        for row, packed in zip(batch, rows, strict=True):
            shuffle.shuffle(packed)
            flat = [token for document in packed for token in document]
            row[: len(flat)] = torch.tensor(flat)
        yield batch


def first_weights(recipe: Recipe, folder: Path, vocabulary: int) -> Decoder:
    """Those of another model, or random ones.

    A recipe may have twice (three times, ...) the layers of the model that it starts from. Each of
    those is then followed by copies of itself that add nothing to the residual stream yet, so that
    the deeper model computes what the other does (LLaMA Pro, Wu et al. 2024, arXiv:2401.02415).

    Raises:
        ValueError: the other model has another shape; the text names where they differ.
    """
    config = recipe.decoder_config(vocabulary)
    decoder = Decoder(config)
    if not recipe.start:
        initialise(decoder, recipe.seed)
        return decoder
    other = Decoder.load(folder / recipe.start)
    asked, found = dataclasses.asdict(config), dataclasses.asdict(other.config)
    copies, rest = divmod(asked["num_hidden_layers"], found["num_hidden_layers"])
    if rest == 0:
        found["num_hidden_layers"] *= copies
    differ = [name for name in asked if asked[name] != found[name]]
    if differ:
        raise ValueError(f"the recipe starts from {recipe.start}, which differs in {differ}")
    decoder.load_state_dict(dict(deepened(other.state_dict(), copies)))
    return decoder


def deepened(weights: Mapping[str, Tensor], copies: int) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, each layer of the model `copies` times, of which one has an effect."""
    for name, weight in weights.items():
        parts = name.split(".")
        if parts[:2] != ["model", "layers"]:
            yield name, weight
            continue
        for copy in range(copies):
            layer = str(int(parts[2]) * copies + copy)
            silent = copy > 0 and parts[-2] in ("o_proj", "down_proj")
            yield ".".join([*parts[:2], layer, *parts[3:]]), weight * (not silent)


def initialise(decoder: Decoder, seed: int) -> None:
    """Normal weights of 0.02, smaller where a layer writes to the residual stream (GPT-2)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            deep = math.sqrt(2 * decoder.config.num_hidden_layers) if writes else 1.0
            torch.nn.init.normal_(parameter, std=0.02 / deep, generator=generator)


def loss_of(decoder: Decoder, batch: Tensor, pad: int) -> Tensor:
    """Mean cross-entropy in nats per real token, in bfloat16 where matrices multiply."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        logits = decoder.logits(decoder(batch[:, :-1]))
    return cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), ignore_index=pad)


def pretrain(
    recipe: Recipe, work: Path, *, compiled: bool, every: int = 100, folder: Path = Path()
) -> Decoder:
    """Run (or resume) the recipe, with a checkpoint every `every` steps; return the model.

    Args:
        folder: of the recipe, for the models that it names.
    """
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(recipe, folder)
    pad = tokenizer.pad_token_id
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = first_weights(recipe, folder, len(tokenizer)).to(device)
    matrices = [p for p in decoder.parameters() if p.dim() == 2]
    vectors = [p for p in decoder.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    step, tokens, seconds = 0, 0, 0.0
    checkpoint, log = work / "checkpoint.pt", work / "log.jsonl"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["recipe"] != json.dumps(dataclasses.asdict(recipe)):
            raise SystemExit(f"{work} holds a run of another recipe: choose another --work")
        decoder.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, tokens, seconds = saved["step"], saved["tokens"], saved["seconds"]
        print(f"resuming at step {step} of {recipe.steps}", flush=True)
    compute: Callable[[Decoder, Tensor, int], Tensor] = loss_of
    if compiled:
        compute = torch.compile(loss_of, dynamic=False)  # once for each phase
    clock = time.perf_counter()
    for batch in batches(recipe, tokenizer, step):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        loss = compute(decoder, batch.to(device), pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += int((batch[:, 1:] != pad).sum())
        if step % 20 == 0 or step == recipe.steps:
            seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            line = {"step": step, "loss": round(loss.item(), 4), "tokens": tokens}
            line["seconds"] = round(seconds, 1)
            print(json.dumps(line), flush=True)
            with log.open("a") as out:
                out.write(json.dumps(line) + "\n")
        if step % every == 0 or step == recipe.steps:
            state = {
                "recipe": json.dumps(dataclasses.asdict(recipe)),
                "model": decoder.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "tokens": tokens,
                "seconds": seconds,
            }
            torch.save(state, work / "checkpoint.part")
            os.replace(work / "checkpoint.part", checkpoint)
    return decoder


def export(decoder: Decoder, recipe: Recipe, work: Path, directory: Path) -> None:
    """Write the model in Hugging Face format to the recipe's folder, with the record of its
    training."""
    decoder.save(directory)
    tokenizer = tokenizer_of(recipe, directory)
    tokenizer.save_pretrained(directory)
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    generation = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    latest = {line["step"]: line for line in lines}  # a resumed run repeats some steps
    record = {
        "recipe": dataclasses.asdict(recipe),
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "tokens": lines[-1]["tokens"],
        "seconds": lines[-1]["seconds"],
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "losses": [[line["step"], line["loss"]] for line in latest.values()],
    }
    (directory / "training.json").write_text(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="recipe.json; the model is written beside it")
    parser.add_argument("--work", type=Path, help="checkpoints and log (default: build/<name>)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs g++")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe.load(arguments.recipe)
    work = arguments.work or Path("build") / recipe.name
    folder = arguments.recipe.parent
    decoder = pretrain(recipe, work, compiled=arguments.compile, folder=folder)
    export(decoder, recipe, work, folder)
    print(f"wrote {folder}", flush=True)


if __name__ == "__main__":
    main()

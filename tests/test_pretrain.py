"""Pretraining end to end at toy size: it learns, resumes to the same weights, and exports."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.tasks import math
from tools.corpus import LENGTHS, SEPARATOR, Mixture, documents
from tools.pretrain import Phase, Recipe, batches, export, pretrain, train_tokenizer

TOY = Recipe(
    name="toy", hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=1, head_dim=16,
    context=128, phases=(Phase(steps=20, rows=8, length=96, learning_rate=1e-2, warmup=5),
                         Phase(steps=10, rows=8, length=80, learning_rate=5e-3, warmup=2)),
)  # fmt: skip


def toy(steps: int) -> Recipe:
    """The toy with fewer steps, the last third of them in the second phase."""
    first, second = TOY.phases
    later = steps // 3
    return replace(TOY, phases=(replace(first, steps=steps - later), replace(second, steps=later)))


def test_it_learns_and_exports_what_transformers_loads(tmp_path: Path) -> None:
    decoder = pretrain(TOY, tmp_path / "work", compiled=False)
    export(decoder, TOY, tmp_path / "work", tmp_path / "model")
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    losses = dict(record["losses"])
    assert losses[20] > losses[30]
    assert losses[30] < 4.0  # a uniform guess is 6.05
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.tensor(
        [AutoTokenizer.from_pretrained(tmp_path / "model")("Compute 3+4.")["input_ids"]]
    )
    with torch.no_grad():
        ours, theirs = decoder.logits(decoder(tokens)), model(tokens).logits
    assert (ours - theirs).abs().max() < 0.1  # the export rounds to bfloat16


def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(toy(6), tmp_path / "whole", compiled=False, every=2)
    rate = Recipe.rate

    def crash(recipe: Recipe, step: int) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return rate(recipe, step)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "rate", crash)
        with pytest.raises(KeyboardInterrupt):
            pretrain(toy(6), tmp_path / "cut", compiled=False, every=2)
    resumed = pretrain(toy(6), tmp_path / "cut", compiled=False, every=2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pretrain(toy(1), tmp_path, compiled=False, every=1)
    with pytest.raises(SystemExit, match="another recipe"):
        pretrain(toy(2), tmp_path, compiled=False)


def test_batches_do_not_depend_on_where_a_run_resumed() -> None:
    tokenizer = train_tokenizer(TOY, sample=200)
    from_start = list(islice(batches(TOY, tokenizer, 0), 3))
    assert torch.equal(next(batches(TOY, tokenizer, 2)), from_start[2])


def faulty(text: str) -> bool:
    return any(not eval(e.replace("=", "==")) for e in math.EQUATION.findall(text))


def test_the_corpus_is_the_mixture_it_says() -> None:
    mixture = Mixture(thought=0.7, several=0.4)
    texts = list(islice(documents(3, mixture), 4000))
    assert not any("<|" in text for text in texts)
    blocks = [text.split(SEPARATOR) for text in texts]
    assert sum(len(b) > 1 for b in blocks) / 4000 == pytest.approx(0.4, abs=0.03)
    assert sum("=" in text for text in texts) / 4000 == pytest.approx(0.7, abs=0.03)
    stories = [b for several in blocks for b in several if "Compute" not in b]
    for steps, share in enumerate(LENGTHS, 1):
        found = sum(b.count("Then") == steps for b in stories) / len(stories)
        assert found == pytest.approx(share, abs=0.025)


def test_one_solver_writes_a_whole_document() -> None:
    """Whoever makes no mistake in one problem makes fewer than others do in the next."""
    texts = islice(documents(4, Mixture(thought=1.0, several=1.0)), 4000)
    pairs = [[faulty(b) for b in text.split(SEPARATOR)[:2]] for text in texts]
    after_right = [b for a, b in pairs if not a]
    after_wrong = [b for a, b in pairs if a]
    assert sum(after_right) / len(after_right) + 0.2 < sum(after_wrong) / len(after_wrong)


def test_every_digit_is_a_token_of_its_own() -> None:
    tokenizer = train_tokenizer(TOY, sample=500)
    assert tokenizer.tokenize("12+345=357") == list("12+345=357")
    text = "Question: Tom has 12 apples.\nAnswer: é ✓"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

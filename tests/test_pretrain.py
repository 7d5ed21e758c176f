"""Pretraining end to end at toy size: it learns, resumes to the same weights, and exports."""

import json
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.engine.model import Decoder
from posttrain.tasks import math, rubrics, stories
from posttrain.tasks.games import game_of, read_move
from posttrain.tasks.gold import gold
from tools.corpus import INTERVIEW, LENGTHS, SEPARATOR, Mixture, documents
from tools.pretrain import (
    batches,
    export,
    first_weights,
    pretrain,
    tokenizer_of,
    train_tokenizer,
)
from tools.recipe import Phase, Recipe

ROOT = Path(__file__).parents[1]
# Of each phase.
BASE_CORPUS = ("756fc5ebf3ba204c", "3de2d22ec929efaa", "47dbe0c96fa20073", "8c9feec4585c0b84")

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


@pytest.fixture(scope="module")
def trained_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tokenizer, for runs that are not about it: training one takes seconds."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TOY, sample=300).save_pretrained(folder)
    return str(folder)


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
    trained_tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(toy(6), tokenizer=trained_tokenizer)
    whole = pretrain(recipe, tmp_path / "whole", compiled=False, every=2)
    rate = Recipe.rate

    def crash(recipe: Recipe, step: int) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return rate(recipe, step)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "rate", crash)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "cut", compiled=False, every=2)
    resumed = pretrain(recipe, tmp_path / "cut", compiled=False, every=2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_recipe_is_refused(trained_tokenizer: str, tmp_path: Path) -> None:
    one, two = (replace(toy(steps), tokenizer=trained_tokenizer) for steps in (1, 2))
    pretrain(one, tmp_path, compiled=False, every=1)
    with pytest.raises(SystemExit, match="another recipe"):
        pretrain(two, tmp_path, compiled=False)


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


def test_a_tokenizer_trained_again_is_the_same() -> None:
    """What a resumed run relies on: it keeps the weights, and trains the tokenizer anew."""
    once, again = (train_tokenizer(TOY, sample=300).backend_tokenizer.to_str() for _ in range(2))
    assert once == again


def test_every_digit_is_a_token_of_its_own() -> None:
    tokenizer = train_tokenizer(TOY, sample=500)
    assert tokenizer.tokenize("12+345=357") == list("12+345=357")
    text = "Question: Tom has 12 apples.\nAnswer: é ✓"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_corpus_of_the_shipped_base_is_the_one_it_was_pretrained_on() -> None:
    """Document by document, in every phase: what makes the base reproducible."""
    phases = Recipe.load(ROOT / "models/base/recipe.json").phases
    for phase, expected in zip(phases, BASE_CORPUS, strict=True):
        texts = islice(documents(1, phase.mixture), 600)
        assert sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()[:16] == expected


def test_skilled_authors_make_no_mistakes() -> None:
    def texts(task: str, skilled: float) -> list[str]:
        mixture = Mixture({task: 1.0}, thought=1.0, several=0.0, skilled=skilled)
        found = islice(documents(5, mixture), 300)
        return [text for text in found if "In base 8" not in text]  # `faulty` reads base 10

    def share(found: list[bool]) -> float:
        return sum(found) / len(found)

    usual, half, all_ = (share([faulty(t) for t in texts("math", s)]) for s in (0.0, 0.5, 1.0))
    assert all_ == 0
    assert half == pytest.approx(usual / 2, abs=0.08)
    named = {r.question: r for r in islice(stories.stream("train", seed=5), 400)}
    for text in texts("stories", 1.0):
        question, answer = text.removeprefix("Question: ").split("\nAnswer: ")
        assert gold(named[question], answer) > 8  # a flawless story has about 10
    for text in texts("games", 1.0):
        for one in text.split(SEPARATOR):
            question, answer = one.removeprefix("Question: ").split("\nAnswer: ")
            assert read_move(answer) in game_of(question).best(question)
    assert not any("error" in text for text in texts("tools", 1.0))
    assert any("error" in text for text in texts("tools", 0.0))


def test_judgements_are_the_exact_ones() -> None:
    texts = list(islice(documents(6, Mixture({"judgements": 1.0})), 200))
    examples = [rubrics.judgement("train", i, seed=6) for i in range(200)]
    for text, example in zip(texts, examples, strict=True):
        verdict = rubrics.check(example.criterion, example.item, example.text)
        assert text.endswith(f"{example.criterion.text}?\nAnswer: {'yes' if verdict else 'no'}")
    assert sum(text.endswith("yes") for text in texts) / 200 == pytest.approx(0.5, abs=0.1)


def test_interviews_are_conversations_about_one_text() -> None:
    texts = list(islice(documents(6, Mixture({"interviews": 1.0})), 50))
    for i, text in enumerate(texts):
        found = rubrics.interview("train", i, INTERVIEW, seed=6)
        turns = [turn.removeprefix("<|user|> ") for turn in text.split("<|end|>")]
        assert turns.pop() == ""
        assert turns[0] == found[0].prompt
        assert turns[2::2] == [rubrics.judge_question(j.criterion) for j in found[1:]]
        assert turns[1::2] == [f"<|assistant|> {j.answer}" for j in found]


def test_a_judge_goes_on_from_a_base_with_the_same_tokenizer(tmp_path: Path) -> None:
    base, judge = tmp_path / "base", tmp_path / "judge"
    judge.mkdir()
    tokenizer = train_tokenizer(TOY, sample=300)
    tokenizer.save_pretrained(base)
    first_weights(toy(2), base, len(tokenizer)).save(base)
    recipe = replace(toy(2), name="judge", tokenizer="../base", start="../base")
    mixture = Mixture({"judgements": 1.0})
    recipe = replace(recipe, phases=tuple(replace(p, mixture=mixture) for p in recipe.phases))
    assert len(tokenizer_of(recipe, judge)) == len(tokenizer)
    start, saved = first_weights(recipe, judge, len(tokenizer)), Decoder.load(base)
    for a, b in zip(start.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad
    work = tmp_path / "judging"
    trained = pretrain(recipe, work, compiled=False, folder=judge)
    export(trained, recipe, work, judge)
    assert not torch.equal(trained.lm_head.weight, saved.lm_head.weight)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (judge, base))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template
    assert (judge / "tokenizer.json").read_text() == (base / "tokenizer.json").read_text()
    with pytest.raises(
        ValueError, match=r"starts from ../base, which differs in \['hidden_size'\]"
    ):
        first_weights(replace(recipe, hidden_size=64), judge, len(tokenizer))
    with pytest.raises(ValueError, match=r"takes its tokenizer from .*none, where there is none"):
        tokenizer_of(replace(recipe, tokenizer="../none"), judge)


def test_a_deeper_model_starts_as_the_one_it_grows_from(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TOY, sample=300)
    shallow = first_weights(toy(2), tmp_path, len(tokenizer))
    shallow.save(tmp_path / "base", torch.float32)
    deep = replace(toy(2), layers=3 * toy(2).layers, start="../base")
    (tmp_path / "teacher").mkdir()
    grown = first_weights(deep, tmp_path / "teacher", len(tokenizer))
    assert grown.config.num_hidden_layers == 3 * shallow.config.num_hidden_layers
    tokens = torch.arange(3 * 40).view(3, 40) % len(tokenizer)
    assert torch.equal(grown(tokens), shallow(tokens))
    grown.logits(grown(tokens)).square().mean().backward()
    added = grown.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert (added == 0).all()
    assert added.grad is not None
    assert added.grad.abs().max() > 0  # silent, and ready to learn
    with pytest.raises(ValueError, match=r"differs in \['num_hidden_layers'\]"):
        first_weights(replace(deep, layers=toy(2).layers + 1), tmp_path / "teacher", len(tokenizer))


def test_single_questions_can_be_asked_in_the_chat_format() -> None:
    """As the tokenizer's template lays them out; all other documents stay what they were."""
    usual = Mixture({"math": 0.5, "games": 0.5})
    told = list(islice(documents(3, usual), 300))
    chatted = list(islice(documents(3, replace(usual, chat=1.0)), 300))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/base")
    changed = 0
    for before, after in zip(told, chatted, strict=True):
        if "<|user|>" in after:
            question, answer = before.removeprefix("Question: ").split("\nAnswer: ")
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            assert after == tokenizer.apply_chat_template(turns, tokenize=False)
            changed += 1
        else:
            assert after == before
    assert changed > 80  # of about 150 documents of math problems, those with a single one


@pytest.mark.parametrize(("name", "least", "most"), [("judge", 4e6, 12e6), ("teacher", 4e6, 12e6)])
def test_the_shipped_recipes_can_be_trained(name: str, least: float, most: float) -> None:
    folder = ROOT / "models" / name
    recipe = Recipe.load(folder / "recipe.json")
    tokenizer = tokenizer_of(recipe, folder)
    decoder = first_weights(recipe, folder, len(tokenizer))
    assert least <= sum(p.numel() for p in decoder.parameters()) <= most
    batch = next(batches(recipe, tokenizer, 0))
    assert (batch != tokenizer.pad_token_id).float().mean() > 0.9

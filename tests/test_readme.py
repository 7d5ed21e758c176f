"""What the documents say exists: files, make targets, commands, options, names, examples."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from pathlib import Path

import pytest
import tinker
import typer
from typer.core import TyperGroup

from posttrain.cli import app
from posttrain.connect import shipped_models
from posttrain.lab.arms import EXPERIMENTS
from posttrain.lab.worlds import TASKS
from tools import tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "PLAN.md", "CONTRIBUTING.md", "docs/design.md", "docs/tinker.md",
             "docs/engine.md", "docs/vocabulary.md", "docs/log.md", "methods/dpo/README.md",
             "methods/distillation/README.md", "methods/marl/README.md", "methods/rlhf/README.md",
             "methods/rlvr/README.md", "methods/rubric_rl/README.md", "methods/sdft/README.md",
             "methods/sft/README.md"]  # fmt: skip
ROOMS = ("posttrain", "methods", "models", "tools", "tests", "docs", "benchmarks", ".ci")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
documents = pytest.mark.parametrize("name", DOCUMENTS)


def text_of(name: str) -> str:
    """The document without its built tables, which name what is only planned."""
    return tables.BLOCK.sub("", (ROOT / name).read_text())


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Shell lines, and backticked text, without comments."""
    lines = [line for body in blocks(text, "sh") for line in body.splitlines()]
    return [line.split(" #")[0].strip() for line in [*lines, *spans(text)]]


def paths(text: str) -> set[str]:
    words = {word for command in commands(text) for word in command.split()}
    found = {word for word in words if word.split("/")[0] in ROOMS and "/" in word}
    found |= {word for word in words if re.fullmatch(r"[\w.-]+\.(md|txt|toml)|Makefile", word)}
    return {word for word in found if word not in shipped_models()}


@documents
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", text_of(name)))
    local = [link for link in links if not link.startswith(("https://", "http://"))]
    missing = [link for link in local if not (ROOT / name).parent.joinpath(link).exists()]
    assert missing == []


@documents
def test_paths_exist(name: str) -> None:
    assert [path for path in sorted(paths(text_of(name))) if not (ROOT / path).exists()] == []


@documents
def test_make_targets_and_variables_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):(?!=)", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *[?:]?=", makefile, re.MULTILINE))
    for command in commands(text_of(name)):
        before, make, after = f" {command} ".partition(" make ")
        if make and after.strip():
            assert after.split()[0] in targets, command
            set_here = re.findall(r"([A-Z_]+)=", before + after)
            assert set(set_here) <= variables, command


def posttrain_commands(name: str) -> list[list[str]]:
    """The words after `posttrain` of every command line in the document."""
    every = commands(text_of(name))
    found = [re.match(r"(?:\S*/)?posttrain ([a-z].*)", command) for command in every]
    return [match[1].split() for match in found if match]


@documents
def test_commands_and_options_exist(name: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for words in posttrain_commands(name):
        assert words[0] in group.commands, words
        known = {option for p in group.commands[words[0]].params for option in p.opts}
        assert {word for word in words if word.startswith("--")} <= known, words
        if words[0] == "run" and len(words) > 1:
            assert words[1] in EXPERIMENTS, words
        if "--task" in words:
            assert words[words.index("--task") + 1] in TASKS, words


def test_the_readme_shows_every_command() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert {words[0] for words in posttrain_commands("README.md")} == set(group.commands)


@documents
def test_options_of_tools_and_variables_exist(name: str) -> None:
    text = text_of(name)
    for command in commands(text):
        if tool := re.search(r"\btools/\w+\.py\b", command):
            source = (ROOT / tool[0]).read_text()
            assert all(f'"{option}"' in source for option in re.findall(r"--\w+", command)), command
    sources = "".join(path.read_text() for path in sorted((ROOT / "posttrain").rglob("*.py")))
    named = set(re.findall(r"\b(?:POSTTRAIN|TINKER)_[A-Z_0-9]+\b", text))
    assert {variable for variable in named if variable not in sources} == set()


@documents
def test_dotted_names_exist(name: str) -> None:
    for dotted in spans(text_of(name)):
        if re.fullmatch(r"posttrain(\.\w+)+", dotted):
            path = ROOT / dotted.replace(".", "/")
            if path.with_suffix(".py").exists() or path.is_dir():
                continue
            parts = dotted.split(".")
            there = [n for n in range(len(parts)) if source_of(parts[:n]).exists()]
            assert there, dotted
            cut = there[-1]
            tree: ast.AST = ast.parse(source_of(parts[:cut]).read_text())
            for part in parts[cut:]:
                nodes = ast.iter_child_nodes(tree)
                tree = next((n for n in nodes if getattr(n, "name", "") == part), ast.Pass())
                assert not isinstance(tree, ast.Pass), dotted


def source_of(parts: list[str]) -> Path:
    return ROOT.joinpath(*parts).with_suffix(".py")


def test_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_the_task_in_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graders fail closed, its splits are disjoint, its items depend on seed and index."""
    (source,) = (b for b in blocks(text_of("CONTRIBUTING.md"), "python") if "class Sorting" in b)
    (tmp_path / "example_sorting.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module("example_sorting")
    problem, split_by_hash = task.problem, task.split_by_hash
    keys: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for split, i in itertools.product(keys, range(50)):
        item = problem(split, i, seed=1)
        assert item == problem(split, i, seed=1)
        assert split_by_hash(item.key) == split
        keys[split].add(item.key)
        for right in (item.solution, item.bare_answer):
            assert item.grade(right).correct
        assert not item.grade("The answer is 1.").correct
        assert not item.grade("no idea").parsed
    assert sum(map(len, keys.values())) == len(set.union(*keys.values()))
    with pytest.raises(ValueError, match="unknown split"):
        problem("exam", 0)
    with pytest.raises(ValueError, match="no ood split"):
        problem("ood", 0)


def test_the_example_of_the_primitives_runs(
    service: tinker.ServiceClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As printed, but on the engine and the tiny model of the tests."""
    source = blocks(text_of("docs/tinker.md"), "python")[-1]
    assert "posttrain/base" in source
    monkeypatch.setattr(importlib.import_module("posttrain.connect"), "connect", lambda: service)
    exec(source.replace("posttrain/base", "posttrain/tiny"), {})
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[1]) for line in lines[:5]]
    assert losses == sorted(losses, reverse=True)
    assert lines[-1].startswith("tinker://")

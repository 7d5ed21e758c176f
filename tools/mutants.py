"""Are the tests awake? Plant the classic bugs of post-training one at a time; each must be caught.

    python -m tools.mutants                       all of them, and the report docs/mutants.md
    python -m tools.mutants --only stale-sampler  one; repeat for several; no report
    python -m tools.mutants --list                which there are

A bug (`tools/bugs.py`) is a few words of source and what would stand there if somebody had made the
mistake. The script copies the tree to a temporary folder, changes these words there, and runs the
test files that ought to notice until one test fails: that test has caught the bug. A bug that no
test catches is a hole in the tests, and the exit status is 1. The working tree is never touched.

First the same tests run without any bug: a test that fails anyway catches nothing. All of it takes
about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.runs import git_commit, git_dirty, write_text
from tools.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[1]
REPORT = "docs/mutants.md"
LIMIT = 900  # seconds for the tests of one bug
FAILED = re.compile(r"^FAILED (\S+?)(?:\[.*?\])?(?: - .*)?$", re.MULTILINE)

HEAD = """<!-- Written by `python -m tools.mutants`; do not edit. -->
# Bugs that the tests catch

Mistakes that post-training libraries have made. Each was planted here alone, as a small change of
the source ([tools/bugs.py](../tools/bugs.py)), and the tests were run until one failed. Caught:
{caught} of {of}, at commit {commit}.

| Mistake | Planted in | Caught by |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Verdict:
    """What the tests said to a bug."""

    bug: Bug
    caught_by: str | None  # tests/file.py::test, or None
    seconds: float
    told: str  # the last line of pytest, for people


def planted(bug: Bug, source: str) -> str:
    """`source`, the text of the bug's file, with the bug in it.

    Raises:
        ValueError: the words that it replaces do not occur exactly once.
    """
    found = source.count(bug.before)
    if found != 1:
        raise ValueError(
            f"the bug {bug.name!r} replaces words of {bug.file} that occur {found} times there and "
            f"should occur once; bring tools/bugs.py up to date: {bug.before.strip()!r}"
        )
    return source.replace(bug.before, bug.after)


def copy_tree(root: Path, to: Path) -> None:
    """What git knows of the checkout, and what it would not ignore; not its history."""
    words = ["git", "-C", str(root), "ls-files", "-z", "-c", "-o", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():  # and not deleted since
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def run_tests(tree: Path, files: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The first failure of these test files in `tree`, whose own code they import.

    Nothing compiled is kept: a file that was changed within a second, and is as long as before,
    would be taken for the old one.
    """
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-m", "pytest", "-x", "-q", "-rf", "--color=no", "-p", "no:cacheprovider", *files]
    try:
        return subprocess.run(
            [sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True,
            timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(late.cmd, 124, f"no answer in {LIMIT} s", "")


def caught_by(status: int, output: str) -> str | None:
    """The test that failed. What cannot even be imported or collected (another exit status than 1)
    is a bug that does not work, and is not caught."""
    found = FAILED.search(output)
    return found.group(1) if status == 1 and found else None


def check(bug: Bug, tree: Path) -> Verdict:
    """Plant the bug in `tree`, run its tests, and take it out again.

    Raises:
        ValueError: as `planted`.
    """
    path, began = tree / bug.file, time.monotonic()
    clean = path.read_text()
    path.write_text(planted(bug, clean))
    try:
        done = run_tests(tree, bug.tests)
    finally:
        path.write_text(clean)
    lines = (done.stdout.strip() or done.stderr.strip() or "pytest said nothing").splitlines()
    seconds = time.monotonic() - began
    return Verdict(bug, caught_by(done.returncode, done.stdout), seconds, lines[-1])


def report(verdicts: Sequence[Verdict], commit: str) -> str:
    """The verdicts as a page."""
    caught = [f"`{v.caught_by}`" if v.caught_by else "**no test**" for v in verdicts]
    rows = zip(verdicts, caught, strict=True)
    return HEAD.format(
        caught=sum(v.caught_by is not None for v in verdicts), of=len(verdicts), commit=commit
    ) + "".join(f"| {v.bug.mistake} | `{v.bug.file}` | {by} |\n" for v, by in rows)


def chosen(names: Sequence[str]) -> list[Bug]:
    """The bugs of these names, or all.

    Raises:
        ValueError: an unknown name; the text lists the known ones.
    """
    known = {bug.name: bug for bug in BUGS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown bug {unknown[0]!r}; the known ones are {', '.join(known)}")
    return [known[name] for name in names] or BUGS


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 when every bug was caught, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a single bug")
    parser.add_argument("--list", action="store_true", help="name the bugs, and plant none")
    given = parser.parse_args(arguments)
    try:
        bugs = chosen(given.only)
        for bug in bugs:
            planted(bug, (root / bug.file).read_text())
    except ValueError as error:
        print(error)
        return 1
    if given.list:
        print("\n".join(f"{bug.name}: {bug.mistake}" for bug in bugs))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy_tree(root, tree)
        verdicts = all_checked(bugs, tree)
    if verdicts is None:
        return 1
    if not given.only:
        commit = f"{git_commit()[:7]}{' with changes' if git_dirty() else ''}"
        write_text(root / REPORT, report(verdicts, commit))
        print(f"report: {REPORT}")
    missed = [verdict.bug.name for verdict in verdicts if verdict.caught_by is None]
    print(f"caught {len(verdicts) - len(missed)} of {len(verdicts)}")
    if missed:
        print(f"no test catches: {', '.join(missed)}")
    return 1 if missed else 0


def all_checked(bugs: Sequence[Bug], tree: Path) -> list[Verdict] | None:
    """The verdicts, told as they come; None where the tests fail without any bug."""
    files = list(dict.fromkeys(file for bug in bugs for file in bug.tests))
    print(f"without a bug: {len(files)} test files", flush=True)
    clean = run_tests(tree, files)
    if clean.returncode != 0:
        print(f"{clean.stdout}{clean.stderr}\nthey fail without any bug; mend that first")
        return None
    verdicts = []
    for i, bug in enumerate(bugs, start=1):
        verdict = check(bug, tree)
        verdicts.append(verdict)
        said = verdict.caught_by or f"NOT CAUGHT ({verdict.told})"
        print(f"{i}/{len(bugs)} {bug.name}: {said}, {verdict.seconds:.0f} s", flush=True)
    return verdicts


if __name__ == "__main__":
    sys.exit(main())

"""docs/benchmarks.md from the measurements; every number of the page comes from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.comparison import (
    DTYPES,
    OURS,
    PEERS,
    Cells,
    Goal,
    best_peer,
    call_overheads,
    goals,
    median,
    peak_memory,
    ratio,
    seconds,
)
from benchmarks.work import FULL, LONG

NAMES = {OURS: "PostTrain-Lab", "transformers": "transformers + PEFT", "trl": "TRL"}
HEADER = """\
<!-- Written by `python -m benchmarks.run` from benchmarks/results.json; not edited by hand. -->

# Benchmarks

How fast the embedded engine is, beside what people use for the same work on the same machine.
`make bench` makes an environment of its own (`.venv-bench`), measures everything in turns, and
writes this page. It takes about forty minutes on a quiet machine; interrupted, the same command
continues. What the numbers say holds for this machine and these versions.
"""
METHOD = f"""\
## What is measured

- **W1**, an SFT step: {FULL.rows} sequences of {FULL.length} tokens, forward, backward and Adam.
- **W2**, sampling: {FULL.prompts} different prompts of {FULL.prompt} tokens, {FULL.new} new tokens,
  temperature 1.
- **W3**, an RL step: {FULL.groups} prompts of {FULL.prompt} tokens, {FULL.group} answers of
  {FULL.answer} tokens to each, then one policy-gradient step on them.
- **W4**, from the start of a process to its first finished SFT step.

The models are Qwen3 decoders with random weights, 1,024 tokens and tied embeddings: `tiny` has
5.0 million parameters, `small` 19.4 million; LoRA of rank 32 on all seven matrices of a layer. The
end of a sequence cannot be drawn, so everyone generates exactly the same number of tokens.

PostTrain-Lab is measured as it is used: a Python process with the Tinker SDK, and the engine behind
HTTP; both share the cores, and their memory is added up. `transformers` and PEFT run in a plain
loop. TRL runs its SFTTrainer and GRPOTrainer, without gradient checkpointing, in passes of 32
sequences; it samples through `transformers`, so it has no W2 of its own. In bfloat16 everyone keeps
the adapter and its optimizer in float32 and multiplies matrices in bfloat16.

Each cell is a process of its own, held to as many cores as it has threads. Those that are compared
take turns. The first repetition warms up and does not count, unless it takes longer than
{LONG:.0f} seconds; then it is the measurement. Times are medians, with the minimum in parentheses.
"""
WHY = """\
- **Training** in bfloat16 multiplies so fast that norms, rotations, gates and conversions take as
  long as the products. They are written by hand, each in as few passes as PyTorch has operations
  for; one pass for several of them would take a compiler, and `torch.compile` needs longer than a
  lesson lasts.
- **Sampling** multiplies 64 rows with every matrix, for each token. In bfloat16 the library
  arranges each matrix anew for every product. And it attends with a few rows of queries for each
  sample and head: all keys and values are read for every token, which is bound by memory.
- **RL steps** are the two together.
- **The first step** waits for two processes, which share one core: the client imports the SDK, and
  both import PyTorch. The parts are below.
- **Calls**: client and engine share one core here too, and an SFT step is two calls. The parts of
  these are below as well.
"""
ABSENT = """\
## Peers that are not here

- **SkyRL** 0.3 (JAX backend) is pinned to PEFT 0.18.1 and to transformers before 5.9, so it cannot
  share an environment with the others; and against its server `sample` of the Tinker SDK that is
  pinned here fails.
- **OpenRL** (the Tinker-compatible server) is not on PyPI; the package of that name is another
  project.
"""


def render(results: dict[str, Any], made_of: dict[str, Any] | None = None) -> str:
    """The page. Cells that are not measured stay empty, and are said to be missing.

    Args:
        made_of: the result of `benchmarks.parts`, which may come from another machine.
    """
    cells: Cells = results["cells"]
    parts = [
        HEADER,
        machine(results),
        f"## Goals\n\n{goals_table(cells)}",
        unmet(cells),
        *(times_section(cells, threads) for threads in (1, 2)),
        f"## First step, memory, calls\n\n{first_and_memory(cells)}\n{calls_table(cells)}",
        parts_section(made_of) if made_of else "",
        peak_section(cells),
        growth_section(cells),
        METHOD,
        ABSENT,
    ]
    return "\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine(results: dict[str, Any]) -> str:
    about = results["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    changed = "" if results["dirty"] is False else ", with files changed since"
    return (
        f"{about['processor']}; {about['cores']} cores; {about['system']}; Python "
        f"{about['python']}; {versions}. Begun {results['begun']} at commit "
        f"{results['commit'][:12]}{changed}.\n"
    )


# Goals --------------------------------------------------------------------------------------------


def goals_table(cells: Cells) -> str:
    rows = []
    for goal in goals(cells):
        sign = "at most" if goal.upper else "at least"
        met = {True: "yes", False: "no", None: "not measured"}[goal.met]
        rows.append([goal.name, f"{sign} {amount(goal.asked, goal.unit)}",
                     amount(goal.reached, goal.unit), met])  # fmt: skip
    text = (
        "Speed is the best peer's time over ours, on one thread: in bfloat16 against the best of\n"
        "either type, in float32 (as on a processor without bf16 matrix units) against the best\n"
        "in float32. Memory is ours over the smallest peer's.\n"
    )
    return f"{text}\n{table(['', 'Asked', 'Reached', 'Met'], rows)}"


def amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.2f}x" if unit == "x" else f"{value:.1f} {unit}"


def unmet(cells: Cells) -> str:
    """Every goal that was missed, with what its time is spent on."""
    lines = [f"- {reason(goal, cells)}\n" for goal in goals(cells) if goal.met is False]
    if not lines:
        return ""
    return f"### Not reached, and why\n\n{WHY}\n" + "".join(lines)


def reason(goal: Goal, cells: Cells) -> str:
    text = f"**{goal.name}**: {amount(goal.reached, goal.unit)} of {amount(goal.asked, goal.unit)}."
    found = cells.get(f"engine {goal.shape} {OURS} {goal.dtype} 1")
    if not found or goal.work not in found[-1] or goal.reached is None:
        return text
    kinds = found[-1][goal.work]["profile"]
    spent = ", ".join(f"{share:.0%} {kind}" for kind, share in ordered(kinds) if share >= 0.05)
    products = kinds["matrix products"]
    text += f" Its time by the profile: {spent}."
    if products > 0:
        text += (
            f" With all but the matrix products free it would be {goal.reached / products:.1f}x."
        )
    return text


def ordered(kinds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(kinds.items(), key=lambda pair: -pair[1])


# Times --------------------------------------------------------------------------------------------


def times_section(cells: Cells, threads: int) -> str:
    rows = []
    for work in ("W1", "W2", "W3"):
        for shape in ("tiny", "small"):
            for dtype in DTYPES:
                keys = [f"{work} {shape} {name} {dtype} {threads}" for name in (OURS, *PEERS)]
                if not any(key in cells for key in keys):
                    continue
                rates = [cell(cells, key, FULL.tokens(work)) for key in keys]
                rows.append(
                    [work, shape, dtype, *rates, faster(cells, work, shape, dtype, threads)]
                )
    if not rows:
        return ""
    header = ["", "Model", "Type", *NAMES.values(), "Best peer's time over ours"]
    title = f"## {'One thread' if threads == 1 else 'Two threads'}"
    note = "W1 counts tokens trained, W2 tokens sampled, W3 tokens sampled and trained.\n"
    return f"{title}\n\n{note}\n{table(header, rows)}"


def cell(cells: Cells, key: str, tokens: int) -> str:
    """Median, minimum and rate, such as `1.51 s (1.48), 2,713 tok/s`."""
    middle = median(cells, key)
    if middle is None:
        return ""
    return f"{middle:.3g} s ({min(seconds(cells, key)):.3g}), {tokens / middle:,.0f} tok/s"


def faster(cells: Cells, work: str, shape: str, dtype: str, threads: int) -> str:
    """In the same type, and against the best peer in any."""
    same = ratio(cells, work, shape, dtype, (dtype,), threads)
    best = best_peer(cells, work, shape, DTYPES, threads)
    any_type = ratio(cells, work, shape, dtype, DTYPES, threads)
    if same is None or best is None or any_type is None:
        return ""
    if best.dtype == dtype:
        return f"{same:.2f}x ({NAMES[best.engine]})"
    return f"{same:.2f}x; {any_type:.2f}x against {NAMES[best.engine]} in {best.dtype}"


def first_and_memory(cells: Cells) -> str:
    rows = []
    names = (OURS, *PEERS)
    if any(f"W4 tiny {name} float32 1" in cells for name in names):
        times = [(median(cells, k), seconds(cells, k)) for k in
                 (f"W4 tiny {name} float32 1" for name in names)]  # fmt: skip
        shown = ["" if m is None else f"{m:.1f} s ({min(all_):.1f})" for m, all_ in times]
        rows.append(["W4 tiny, float32", *shown])
    for shape in ("tiny", "small"):
        for dtype in DTYPES:
            peaks = [peak_memory(cells, f"W3 {shape} {name} {dtype} 1") for name in names]
            if any(peak is not None for peak in peaks):
                shown = ["" if peak is None else f"{peak / 1e9:.2f} GB" for peak in peaks]
                rows.append([f"peak memory of W3 {shape}, {dtype}", *shown])
    return table(["One thread", *NAMES.values()], rows) if rows else ""


def calls_table(cells: Cells) -> str:
    overheads = call_overheads(cells)
    if not overheads:
        return ""
    key = next(key for key in cells if key.startswith("calls "))
    rows = []
    for name, (through, without) in cells[key][-1].items():
        middle = [1e3 * statistics.median(times) for times in (through, without)]
        rows.append(
            [name, *(f"{value:.1f} ms" for value in middle), f"{1e3 * overheads[name]:.1f} ms"]
        )
    text = (
        "Calls on a few tokens, one after the other and each awaited, through the SDK and by the\n"
        f"engine in the same process ({key.split()[1]}, {key.split()[3]}, one thread):\n"
    )
    return f"{text}\n{table(['Call', 'SDK', 'Engine alone', 'Overhead'], rows)}"


def parts_section(made_of: dict[str, Any]) -> str:
    step, imports = made_of["first step"], made_of["first step"]["imports"]
    rows = {
        "Python and imports": (imports["client"], imports["engine"]),
        "until a training client is ready": (
            step["ready"]["client"],
            step["ready"]["engine"] - imports["engine"],
        ),
        "the SFT step": (step["step"]["client"], step["step"]["engine"]),
    }
    rows["together"] = tuple(map(sum, zip(*rows.values(), strict=True)))  # type: ignore[assignment]
    shown = [[name, *(f"{value:.2f} s" for value in row)] for name, row in rows.items()]
    single = [
        [name, ms(call["time"]), ms(call["client"]), ms(call["engine"])]
        for name, call in made_of["calls"].items()
    ]
    return (
        "## What a first step and a call are made of\n\n"
        "Processor time of the two processes, which take turns on one core (`python -m\n"
        f"benchmarks.parts`): {made_of['processor']}; torch {made_of['torch']}; model `tiny`,\n"
        f"float32; medians of {made_of['rounds']} rounds, at commit {made_of['commit'][:12]}.\n"
        f"Python and PyTorch alone take {imports['torch']:.2f} s of each import.\n\n"
        f"{table(['First step', 'Client', 'Engine'], shown)}\n"
        f"{table(['Call', 'Time', 'Client', 'Engine'], single)}"
    )


# The engine by itself -----------------------------------------------------------------------------


def peak_section(cells: Cells) -> str:
    rows = []
    for shape in ("tiny", "small"):
        for dtype in DTYPES:
            for found in cells.get(f"engine {shape} {OURS} {dtype} 1", [])[-1:]:
                for work in ("W1", "W2", "W3"):
                    kinds = found[work]["profile"]
                    spent = ", ".join(f"{s:.0%} {k}" for k, s in ordered(kinds) if s >= 0.05)
                    rows.append([work, shape, dtype, f"{found['gemm'] / 1e9:,.0f} GFLOP/s",
                                 f"{found[work]['share']:.0%}", spent])  # fmt: skip
    if not rows:
        return ""
    text = (
        "## Share of the machine's peak\n\n"
        "The engine without SDK and server, on one thread: the arithmetic that the work needs (no\n"
        "recomputation, no padding, a shared prompt once) over what a product of two matrices of\n"
        "1,024 does in the same time; and what its time goes to, by PyTorch's profiler.\n"
    )
    header = ["", "Model", "Type", "Product of 1,024", "Share", "Time"]
    return f"{text}\n{table(header, rows)}"


def growth_section(cells: Cells) -> str:
    key = next((key for key in cells if key.startswith("growth ")), None)
    if key is None:
        return ""
    found, (_, shape, _, dtype, _) = cells[key][-1], key.split()
    text = (
        "## How cost grows\n\n"
        f"The engine without SDK and server, model `{shape}`, {dtype}, one thread.\n"
    )
    batch = [[size, ms(s), us(s, int(size) * 128)] for size, s in found["batch"].items()]
    length = [[size, str(4096 // int(size)), ms(s), us(s, 4096)] for size, s in
              found["length"].items()]  # fmt: skip
    group = []
    for size, sampling in found["sampling"].items():
        tokens, training = 8 * 64 * int(size), found["training"][size]
        group.append([size, ms(sampling), us(sampling, tokens), ms(training), us(training, tokens)])
    return (
        f"{text}\nAn SFT step on sequences of 128 tokens:\n\n"
        f"{table(['Sequences', 'Step', 'A token'], batch)}"
        "\nAn SFT step on 4,096 tokens:\n\n"
        f"{table(['Length', 'Sequences', 'Step', 'A token'], length)}"
        "\nAnswers of 64 tokens to each of 8 prompts of 64 tokens:\n\n"
        f"{table(['Answers', 'Sampling', 'A new token', 'Training', 'A new token'], group)}"
    )


def ms(value: float) -> str:
    return f"{1e3 * value:,.1f} ms"


def us(value: float, tokens: int) -> str:
    return f"{1e6 * value / tokens:,.1f} µs"

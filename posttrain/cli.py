"""The command line: `posttrain lab | run | compare | chat | tasks | models | serve | export`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from posttrain.scale import Scale, scale_from

INTERRUPTED = 130  # what typer makes of Ctrl-C
HOME = Path(__file__).resolve().parents[1]  # the checkout, where lessons keep their results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Post-train language models on the Tinker API: hosted (set TINKER_API_KEY), on a "
        "compatible server (set TINKER_BASE_URL), or on the embedded engine (set neither)."
    ),
)

ScaleOption = Annotated[
    str | None,
    typer.Option(help="smoke (seconds), laptop (minutes, the default) or full (a real model)"),
]
TaskOption = Annotated[
    str | None, typer.Option(help="such as math or gsm8k; the default is the method's own")
]
ModelOption = Annotated[
    str | None, typer.Option(help="base model; `posttrain models` lists the local ones")
]
YesOption = Annotated[
    bool, typer.Option("--yes", help="at full scale, start without asking about the cost")
]


@app.command()
def lab(
    scale: ScaleOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="data order, adapters and sampling")] = 0,
    out: Annotated[Path | None, typer.Option(help="default: runs/lab-SCALE-SEED")] = None,
    yes: YesOption = False,
) -> None:
    """Post-train the base model with SFT and then RLVR, and show before and after.

    An interrupted run resumes when the same command is given again; a finished one is only
    measured again. Delete its folder to start over.
    """
    from posttrain.lab.job import post_train

    chosen = scale_from(scale)
    folder = out or Path(f"runs/lab-{chosen}-{seed}")
    post_train(chosen, task=task, model=model, seed=seed, out=folder, yes=yes)


@app.command()
def run(
    method: Annotated[str, typer.Argument(help="such as sft or rlvr; a wrong name lists all")],
    scale: ScaleOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="the first seed")] = 0,
    seeds: Annotated[int, typer.Option(help="how many seeds; claims need at least 5")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="default: runs/METHOD-SCALE, of another task -TASK too")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="seeds trained at the same time; default: one per core")
    ] = None,
    record: Annotated[
        bool, typer.Option(help="write the results to methods/METHOD of this checkout")
    ] = False,
    sweep: Annotated[
        bool, typer.Option(help="instead: try learning rates, scored on validation")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Run a method against its controls over paired seeds, and write results.json.

    Every arm is trained on the same problems with the same seeds and measured on the same
    held-out items. Finished seeds are kept: the same command goes on where it stopped.

    Examples:

      posttrain run sft                    one seed of every arm

      posttrain run rlvr --seeds 5         five paired seeds, with intervals on the differences;
                                           each seed is a process of its own, one per core

      posttrain run rlvr --task code       on another task, with results beside the usual ones

      posttrain run rlvr --scale smoke     seconds: does it run?

      posttrain run rlvr --scale full      a hosted model: shows what it may cost, and asks
    """
    from posttrain.connect import connect
    from posttrain.lab import compare
    from posttrain.lab.arms import EXPERIMENTS
    from posttrain.lab.estimate import before_spending
    from posttrain.lab.models import check_models
    from posttrain.lab.plans import PLANS
    from posttrain.lab.seeds import run_seeds
    from posttrain.lab.worlds import World

    if method not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ValueError(f"unknown method {method!r}; the known ones are {known}")
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}; it takes at least one seed")
    jobs = min(seeds, os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; it takes at least one")
    chosen, experiment = scale_from(scale), EXPERIMENTS[method]

    def worlds(at: int) -> World:
        return experiment.world(chosen, task, at, model)

    world = worlds(seed)  # a wrong name fails before anything starts
    usual = experiment.tasks[chosen is Scale.FULL]
    named = [method, str(chosen), *([world.task] if world.task != usual else [])]
    folder = out or Path("runs", "-".join(named))
    results = HOME / experiment.name if record else folder
    every = range(seed, seed + seeds)
    if chosen is Scale.FULL:  # ask once, before the seeds go their own ways
        before_spending(connect(), world, PLANS.get(experiment.name), seeds=seeds, yes=yes)
    if jobs > 1 and not sweep:
        words = ["run", method, "--scale", str(chosen), "--out", str(folder), "--yes"]
        words += [*(["--task", task] if task else []), *(["--model", model] if model else [])]
        run_seeds(words, every, jobs)
    service = connect()
    if chosen is not Scale.FULL:
        check_models(service, (world.model, world.judge, world.teacher))
    if sweep:
        compare.sweep(service, experiment, worlds, folder / "sweep", results)
        return
    compare.compare(service, experiment, worlds, every, folder, results)
    print(f"results: {results / experiment.file('results', world.task)}")


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="run folders, or results files and their folders")
    ],
) -> None:
    """Show runs side by side: settings that differ, metrics at the end, budget, and answers.

    A results file has a column for each of its arms, or stages.

    Examples:

      posttrain compare methods/rlvr        a method and its controls

      posttrain compare methods/rlvr/code.results.json   the same on another task

      posttrain compare runs/lab-laptop-0   the stages of the main job, as measured

      posttrain compare runs/lab-laptop-0/sft runs/lab-laptop-0/rlvr   as they trained
    """
    from posttrain.lab.beside import beside, columns

    Console().print(beside([column for name in runs for column in columns(name)]))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="one of them; default: a list of all")] = None,
    seed: Annotated[int, typer.Option(help="another seed shows other items")] = 0,
) -> None:
    """Show the tasks of the lab's world: real items, splits, and what the shipped models score.

    Examples:

      posttrain tasks                    what there is

      posttrain tasks stories --seed 3   a request, a good story and a poor one
    """
    from posttrain.lab.gallery import GALLERY, scores

    if name is None:
        table = Table("task", "about", "difficulty")
        for exhibit in GALLERY.values():
            table.add_row(exhibit.name, exhibit.about, exhibit.difficulty)
        Console().print(table)
        return
    if name not in GALLERY:
        raise ValueError(f"unknown task {name!r}; the known ones are {', '.join(GALLERY)}")
    print(GALLERY[name].text(seed))
    found = scores(name)
    if not found:
        print("No shipped model has been measured on it: python -m tools.scores models/base")
        return
    names = list(dict.fromkeys(model for row in found.values() for model in row))
    table = Table("held-out items, 95 % intervals", *names)
    for measure, row in found.items():
        table.add_row(measure, *[str(row.get(model, "")) for model in names])
    Console().print(table)


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(help="a model, a directory of one, a tinker:// path, or a run's folder"),
    ],
    other: Annotated[str | None, typer.Argument(help="a second one, to be seen beside it")] = None,
    temperature: Annotated[float, typer.Option(help="0 always gives the most probable")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="of an answer")] = 256,
    seed: Annotated[int, typer.Option(help="the same seed and questions, the same answers")] = 0,
    plain: Annotated[
        bool | None,
        typer.Option(
            "--plain/--chat",
            help="ask as the base was pretrained, or in the chat format; default: plain for the "
            "shipped models, which never saw the chat format",
        ),
    ] = None,
) -> None:
    """Talk to a model, or to two of them side by side. /help lists what else can be typed.

    Examples:

      posttrain chat posttrain/base                    as it was pretrained

      posttrain chat posttrain/base runs/lab-laptop-0/rlvr   before and after

      echo "Compute 17+25." | posttrain chat posttrain/base --temperature 0
    """
    from posttrain.chat import Settings, typed
    from posttrain.chat import chat as talk
    from posttrain.connect import connect, shipped_models
    from posttrain.lab.voices import voice

    settings = Settings(temperature, max_tokens, seed)
    names = [model, *([other] if other else [])]
    given = {name: Path(name) for name in names if (Path(name) / "config.json").is_file()}
    given = {name: path for name, path in given.items() if (path / "tokenizer.json").is_file()}
    service = connect(models=shipped_models() | given)
    console = Console()
    voices = [voice(service, name, plain) for name in names]
    for each in voices:
        console.print(f"{each.name}: {each.renderer.name}", style="dim", highlight=False)
        if not each.renderer.prefix_stable:
            said = "this format would drop earlier reasoning; here everything said is kept"
            console.print(said, style="dim")
    talk(voices, typed(console), settings, console)


@app.command()
def models() -> None:
    """List the models that come with this repository, and where the others are."""
    from posttrain.connect import shipped_models
    from posttrain.engine.config import DecoderConfig

    table = Table("model", "layers", "hidden", "vocabulary", "context", "directory")
    for name, directory in shipped_models().items():
        c = DecoderConfig.from_dir(directory)
        sizes = (c.num_hidden_layers, c.hidden_size, c.vocab_size, c.max_position_embeddings)
        table.add_row(name, *map(str, sizes), str(directory))
    Console().print(table)
    print("Hosted Tinker and compatible servers have their own: pass their ids to --model.")


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="DIR, hub id (ORG/MODEL), or NAME=either; repeat for several"),
    ] = None,
    port: Annotated[int, typer.Option(help="0 picks a free one")] = 8000,
    host: Annotated[str, typer.Option(help="other than loopback needs POSTTRAIN_ENGINE_KEY")] = (
        "127.0.0.1"
    ),
    state: Annotated[Path | None, typer.Option(help="checkpoints; default ~/.posttrain")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default all")] = None,
    device: Annotated[
        str, typer.Option(help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="what matrices are multiplied in: float32 (exact), bfloat16 (faster where the "
            "processor has units for it), or auto (bfloat16 there, else float32)"
        ),
    ] = "float32",
) -> None:
    """Serve models over the Tinker API, to any Tinker client on this machine.

    Without --model the shipped models are served. Clients set TINKER_BASE_URL to the printed
    address, and TINKER_API_KEY to anything that begins with tml- (or to the key that you put
    in POSTTRAIN_ENGINE_KEY).

    A model is a directory in Hugging Face format, or a model of the Hugging Face hub, which is
    downloaded once (safetensors only). Families: Qwen2, Qwen2.5, Qwen3, Llama, SmolLM2, Mistral.

    Examples:

      posttrain serve                             the shipped models

      posttrain serve --model Qwen/Qwen3-0.6B     a model of the hub

      posttrain serve --model mine=/data/llama --device cuda
    """
    from posttrain.connect import shipped_models
    from posttrain.engine.hub import directories
    from posttrain.engine.server import serve as serve_engine

    shipped = shipped_models()
    chosen = {name: shipped[name] for name in model or [] if name in shipped}
    chosen |= directories([entry for entry in model or [] if entry not in shipped])
    serve_engine(
        chosen or shipped, host, port, home_of(state),
        device=device, dtype=dtype, threads=threads,
        api_key=os.environ.get("POSTTRAIN_ENGINE_KEY") or None,
        ready=lambda url: print(f"serving the Tinker API at {url}", flush=True),
    )  # fmt: skip


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME")
    ],
    out: Annotated[Path, typer.Argument(help="a directory that does not exist yet")],
    merge: Annotated[
        bool, typer.Option("--merge", help="write the whole model, not only the adapter")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="the base model (directory or hub id), if it has moved")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="of merged weights: float32, bfloat16 or float16")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="where the checkpoints are; default ~/.posttrain")
    ] = None,
) -> None:
    """Write a checkpoint of the embedded engine as other tools read it.

    Without --merge: a LoRA adapter for `peft`, small, to be loaded on top of its base model.
    With --merge: a complete Hugging Face model with its tokenizer, for `transformers`, vLLM or
    `posttrain serve`. Weights keep the base's dtype unless --dtype says otherwise: bfloat16 rounds
    the sum, float32 is what the engine samples from.

    Examples:

      posttrain export tinker://RUN/sampler_weights/final adapter/

      posttrain export tinker://RUN/weights/final model/ --merge --dtype float32
    """
    from posttrain.connect import shipped_models
    from posttrain.engine import export as exporting
    from posttrain.engine.hub import locate

    if dtype is not None and (dtype not in exporting.DTYPES or not merge):
        known = ", ".join(exporting.DTYPES)
        raise ValueError(f"--dtype {dtype} is not one of {known}, or stands without --merge")
    record, found, adapter = exporting.find(home_of(home), checkpoint)
    if merge:
        directory = locate(base) if base else exporting.base_directory(record, shipped_models())
        kind = exporting.DTYPES[dtype] if dtype else None
        exporting.export_merged(found, adapter, out, directory, kind)
        print(f"{out}: {record.base_model} with {checkpoint} merged in, for transformers")
        return
    name = base or exporting.base_name(record, shipped_models())
    exporting.export_adapter(found, adapter, out, name)
    print(f"{out}: LoRA adapter of rank {found.lora.rank} on {name}, for peft")


def home_of(given: Path | None) -> Path:
    """The directory of the embedded engine's checkpoints."""
    return (given or Path(os.environ.get("POSTTRAIN_HOME") or "~/.posttrain")).expanduser()


def main() -> None:
    """Run the command line; what the user can mend is said in one line, without a traceback."""
    from posttrain.engine.errors import UserError

    try:
        app(standalone_mode=True)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("interrupted; the same command resumes", file=sys.stderr)
        raise
    except (ValueError, OSError, RuntimeError, UserError) as error:
        sys.exit(f"posttrain: {error}")
    except Exception as error:
        from tinker import TinkerError  # slow to import: most errors need not wait for it

        if isinstance(error, TinkerError):
            sys.exit(f"posttrain: {error}")
        raise

"""The command line: `posttrain lab | run | models | serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from posttrain.scale import scale_from

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
    str | None, typer.Option(help="math (generated) or gsm8k (through `datasets`)")
]
ModelOption = Annotated[
    str | None, typer.Option(help="base model; `posttrain models` lists the local ones")
]


@app.command()
def lab(
    scale: ScaleOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="data order, adapters and sampling")] = 0,
    out: Annotated[Path | None, typer.Option(help="default: runs/lab-SCALE-SEED")] = None,
) -> None:
    """Post-train the base model with SFT and then RLVR, and show before and after.

    An interrupted run resumes when the same command is given again; a finished one is only
    measured again. Delete its folder to start over.
    """
    from posttrain.lab.job import post_train

    chosen = scale_from(scale)
    post_train(
        chosen, task=task, model=model, seed=seed, out=out or Path(f"runs/lab-{chosen}-{seed}")
    )


@app.command()
def run(
    method: Annotated[str, typer.Argument(help="sft or rlvr")],
    scale: ScaleOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="the first seed")] = 0,
    seeds: Annotated[int, typer.Option(help="how many seeds; claims need at least 5")] = 1,
    out: Annotated[Path | None, typer.Option(help="default: runs/METHOD-SCALE")] = None,
    record: Annotated[
        bool, typer.Option(help="write the results to methods/METHOD of this checkout")
    ] = False,
    sweep: Annotated[
        bool, typer.Option(help="instead: try learning rates, scored on validation")
    ] = False,
) -> None:
    """Run a method against its controls over paired seeds, and write results.json.

    Every arm is trained on the same problems with the same seeds and measured on the same
    held-out items. Finished seeds are kept: the same command goes on where it stopped.

    Examples:

      posttrain run sft                    one seed of every arm

      posttrain run rlvr --seeds 5         five paired seeds, with intervals on the differences

      posttrain run rlvr --scale smoke     seconds: does it run?
    """
    from posttrain.connect import connect
    from posttrain.lab import arms
    from posttrain.lab.worlds import World, world_of

    if method not in arms.EXPERIMENTS:
        known = ", ".join(arms.EXPERIMENTS)
        raise ValueError(f"unknown method {method!r}; the known ones are {known}")
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}; it takes at least one seed")
    chosen, experiment = scale_from(scale), arms.EXPERIMENTS[method]
    folder = out or Path(f"runs/{method}-{chosen}")
    results = arms.HOME / experiment.name if record else folder

    def worlds(at: int) -> World:
        return world_of(chosen, task, at, model)

    worlds(seed)  # a wrong name fails before anything starts
    service = connect()
    if sweep:
        arms.sweep(service, experiment, worlds, folder / "sweep", results)
        return
    arms.compare(service, experiment, worlds, range(seed, seed + seeds), folder, results)
    print(f"results: {results / 'results.json'}")


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
        typer.Option(help="NAME=DIR of a Hugging Face directory; repeat for several"),
    ] = None,
    port: Annotated[int, typer.Option(help="0 picks a free one")] = 8000,
    host: Annotated[str, typer.Option(help="other than loopback needs POSTTRAIN_ENGINE_KEY")] = (
        "127.0.0.1"
    ),
    state: Annotated[Path | None, typer.Option(help="checkpoints; default ~/.posttrain")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default all")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or auto")] = "float32",
) -> None:
    """Serve models over the Tinker API, to any Tinker client on this machine.

    Without --model the shipped models are served. Clients set TINKER_BASE_URL to the printed
    address, and TINKER_API_KEY to anything that begins with tml- (or to the key that you put
    in POSTTRAIN_ENGINE_KEY).
    """
    from posttrain.connect import shipped_models
    from posttrain.engine.server import serve as serve_engine

    chosen = {}
    for entry in model or []:
        name, equals, directory = entry.partition("=")
        if not (name and equals and directory):
            raise ValueError(f"--model {entry!r} is not of the form NAME=DIR")
        chosen[name] = Path(directory)
    home = Path(os.environ.get("POSTTRAIN_HOME") or "~/.posttrain")
    serve_engine(
        chosen or shipped_models(), host, port, (state or home).expanduser(),
        device=device, dtype=dtype, threads=threads,
        api_key=os.environ.get("POSTTRAIN_ENGINE_KEY") or None,
        ready=lambda url: print(f"serving the Tinker API at {url}", flush=True),
    )  # fmt: skip


def main() -> None:
    """Run the command line; what the user can mend is said in one line, without a traceback."""
    from tinker import TinkerError

    from posttrain.connect import BackendError
    from posttrain.engine.errors import UserError

    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes")
    except (ValueError, OSError, TinkerError, BackendError, UserError) as error:
        sys.exit(f"posttrain: {error}")

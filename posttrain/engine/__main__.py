"""`python -m posttrain.engine`: the embedded engine as a process of its own."""

from __future__ import annotations

import os

# Read when torch is imported. Threads that wait for each other awake make everything up to a
# hundred times slower as soon as another process wants one of the processor's cores. Asleep at
# once, they wake too late: a second thread then gains a small model nothing. So they stay awake for
# about as long as waking takes, 0.1 ms. `python -m benchmarks.waiting` measures what that gains and
# costs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import argparse
import logging
import signal
import sys
import threading
import time
from pathlib import Path

from posttrain.engine.devices import KNOWN
from posttrain.engine.errors import UserError
from posttrain.engine.hub import directories
from posttrain.engine.precision import DTYPES
from posttrain.engine.server import serve

DTYPE_VARIABLE = "POSTTRAIN_DTYPE"  # so that connect() need not know
KEY_VARIABLE = "POSTTRAIN_ENGINE_KEY"  # not an argument: those can be read by all users


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m posttrain.engine", description=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="[NAME=]DIR or ORG/MODEL")
    parser.add_argument("--state", type=Path, required=True, help="directory of the checkpoints")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--device", default="auto", help=f"{KNOWN}; auto takes the best")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=os.environ.get(DTYPE_VARIABLE, "float32"),
        help="what matrices are multiplied in; auto is bfloat16 where the processor is made for it",
    )
    parser.add_argument("--parent", type=int, help="end when this process has ended")
    parser.add_argument("--ready", type=Path, help="write the URL to this file once serving")
    args = parser.parse_args()
    if args.parent is not None:
        threading.Thread(target=outlive_not, args=(args.parent,), daemon=True).start()
    logging.basicConfig(level="WARNING", format="%(asctime)s %(name)s: %(message)s")

    def ready(url: str) -> None:
        print(url, flush=True)
        if args.ready is not None:
            # In one operation, so that no reader sees half an address.
            partial = args.ready.with_suffix(".partial")
            partial.write_text(url)
            partial.replace(args.ready)

    try:
        serve(
            directories(args.model),
            args.host,
            args.port,
            args.state,
            api_key=os.environ.get(KEY_VARIABLE) or None,
            threads=args.threads,
            device=args.device,
            dtype=args.dtype,
            ready=ready,
        )
    except (UserError, ValueError, OSError) as error:
        sys.exit(f"posttrain.engine: {error}")


def outlive_not(parent: int) -> None:
    """End this process soon after its parent, even one that was killed.

    An orphan is given another parent by the system; that needs no help from the dying.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)  # whatever was being computed has taken too long


if __name__ == "__main__":
    main()

"""`python -m tools.gates models/base`: measure the gates of a base model, and write its card."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.connect import connect
from posttrain.stats import Estimate
from tools.gates.card import write
from tools.gates.groups import GATES, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--n", type=int, default=300, help="held-out items of each task")
    parser.add_argument("--seed", type=int, default=0, help="another seed takes other items")
    parser.add_argument("--only", action="store_true", help="print, and write nothing")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    service = connect(models={"model": directory})
    values: dict[str, Estimate] = {}
    for found in measure(service, "model", arguments.n, arguments.seed):
        for name, value in found.items():
            gate = GATES[name]
            verdict = "met" if gate.met(value.value) else "NOT MET"
            print(f"{name:44} {value}  in {gate.least:g} to {gate.most:g}: {verdict}", flush=True)
        values |= found
    if not arguments.only:
        write(directory, GATES, values, arguments.n)


if __name__ == "__main__":
    main()

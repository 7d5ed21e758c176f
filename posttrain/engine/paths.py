"""The names that clients may give, and the `tinker://` paths made of them.

Only what matches these patterns ever becomes part of a file name.
"""

from __future__ import annotations

import re

from posttrain.engine.errors import UserError

WEIGHTS, SAMPLER, EXTERNAL = "weights", "sampler_weights", "external_weights"
KINDS = {WEIGHTS: "training", SAMPLER: "sampler", EXTERNAL: "external"}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@-]{0,127}")
SESSION = re.compile(r"[A-Za-z0-9-]{1,80}")
RUN = re.compile(r"[A-Za-z0-9-]{1,80}:train:[0-9]{1,9}")


def parse(path: str) -> tuple[str, str, str]:
    """Split `tinker://<run>/<segment>/<name>`.

    Raises:
        UserError: it is not such a path.
    """
    run, segment, name = [*path.removeprefix("tinker://").split("/"), "", ""][:3]
    shape = path == f"tinker://{run}/{segment}/{name}" and segment in KINDS
    if not (shape and RUN.fullmatch(run) and NAME.fullmatch(name)):
        raise UserError(
            f"{path!r} is not a checkpoint path of this engine: "
            f"tinker://<run>/<{' or '.join(KINDS)}>/<name>"
        )
    return run, segment, name


def check_name(name: str) -> None:
    """Raises UserError where `name` cannot name a checkpoint."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a checkpoint: use up to 128 letters, digits and any of "
            "_ . = + @ -, beginning with a letter, a digit or _"
        )


def run_name(session_id: str, seq_id: int) -> str:
    """The id of a training client, which the protocol fixes. Raises UserError."""
    name = f"{session_id}:train:{seq_id}"
    if not RUN.fullmatch(name):
        raise UserError(f"model_seq_id is {seq_id}, not between 0 and 999999999")
    return name


def session_of(run: str) -> str:
    return run.split(":")[0]

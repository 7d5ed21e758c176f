"""Every model that the experiments name, in one place: what is shipped here, what is hosted.

Hosted models come and go. Tinker retired Qwen3-8B-Base and Qwen3-30B-A3B-Instruct-2507, which
stood here before, on 2026-06-12 (https://tinker-docs.thinkingmachines.ai/tinker/model-deprecations/).
So nothing starts before the server has said that it has them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import tinker

SHIPPED, SHIPPED_TEACHER, SHIPPED_JUDGE = "posttrain/base", "posttrain/teacher", "posttrain/judge"
# A base model with a chat format; one that follows instructions already; a stronger model that
# reads the same tokens as the first; and one that compares answers, or judges criteria.
HOSTED = os.environ.get("POSTTRAIN_MODEL", "Qwen/Qwen3.5-9B-Base")
INSTRUCT = os.environ.get("POSTTRAIN_MODEL", "Qwen/Qwen3.5-9B")
TEACHER = os.environ.get("POSTTRAIN_TEACHER", "Qwen/Qwen3.6-35B-A3B")
JUDGE = os.environ.get("POSTTRAIN_JUDGE", "Qwen/Qwen3-8B")


def check_models(service: tinker.ServiceClient, names: Iterable[str | None]) -> None:
    """Nothing, where the server has all of `names`; None and directories of models are not asked
    about.

    Raises:
        ValueError: it lacks one; the text lists what it has.
    """
    wanted = [name for name in names if name is not None and not Path(name).is_dir()]
    with warnings.catch_warnings():  # the SDK would have a client that needs address and key anew
        warnings.simplefilter("ignore", FutureWarning)
        supported = service.get_server_capabilities().supported_models
    has = sorted(model.model_name for model in supported if model.model_name)
    missing = [name for name in wanted if name not in has]
    if missing:
        raise ValueError(
            f"unknown base model {missing[0]!r}; known: {', '.join(has)}. Choose with --model or "
            "POSTTRAIN_MODEL, and a judge with POSTTRAIN_JUDGE"
        )

"""What one request, and all waiting ones together, may ask for.

The bounds keep a mistake from taking the memory of everybody; ordinary work stays far below.
What depends on the model (context, vocabulary, rank) is checked against the model.
"""

from __future__ import annotations

import os

BODY = 2**29  # bytes of a protobuf body, decompressed
CHUNK = 2**28  # bytes after which the SDK divides one call into several requests
JSON = 2**20  # bytes of a JSON body
PROMPT = 2**25  # bytes of one that may hold tensors: a request to sample, a custom loss
DATA = 2**17  # data in one forward_backward
CELLS = 2**28  # numbers in all tensors of one forward_backward, once sparse ones are unfolded
TARGETS = 4096  # targets at one position
JOBS = 10_000  # requests to train, save or load that wait
SAMPLES = 20_000  # requests to sample that wait
WAITING_BYTES = 2**30  # of training requests that wait, and of requests to sample
KEPT_BYTES = 2**30  # of results that nobody has fetched yet
KEPT = 100_000  # results, likewise
SESSIONS = 10_000  # live ones
CLIENTS = 1_000  # living training clients
SAMPLERS = 10_000  # of one session; those that were last used stay
LOSSES = 256  # custom losses of one session
STOPS = 64  # stop strings or tokens
STOP_LENGTH = 1_000  # characters of a stop string
SCORES = 2**26  # log-probabilities that one sampling request may ask for
TTL = 10 * 366 * 86_400  # seconds: ten years
TEXT = 1_000  # characters of a name, of a metadata value, of an error


def cache_bytes() -> int:
    """What the key-value cache of one sampling request may take: half of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

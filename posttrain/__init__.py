"""PostTrain-Lab: post-training methods for language models, from scratch, on the Tinker API.

service = posttrain.connect()    # hosted Tinker, a compatible server, or the embedded engine
"""

import os

# Before torch is imported. Threads that wait for each other awake stall everything as soon as
# another process wants their core; asleep, they wake too late to be of use to small models. So
# they stay awake for about as long as waking takes (`python -m benchmarks.waiting`).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # about 0.1 ms; it goes before the policy

from posttrain.connect import connect

__all__ = ["connect"]

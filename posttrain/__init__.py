"""PostTrain-Lab: post-training methods for language models, from scratch, on the Tinker API.

service = posttrain.connect()    # hosted Tinker, a compatible server, or the embedded engine
"""

import os

# Before torch is imported: threads that wait must sleep, or a shared core stalls them all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from posttrain.connect import connect

__all__ = ["connect"]

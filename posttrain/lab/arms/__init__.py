"""The experiments of the lessons, by name: what `posttrain run` can run."""

from posttrain.lab.arms import rlvr, sft

EXPERIMENTS = {"sft": sft.EXPERIMENT, "rlvr": rlvr.EXPERIMENT}

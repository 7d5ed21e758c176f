"""The experiments of the lessons, by name: what `posttrain run` can run."""

from posttrain.lab.arms import dpo, marl, rlvr, sft

EXPERIMENTS = {
    "sft": sft.EXPERIMENT,
    "rlvr": rlvr.EXPERIMENT,
    "dpo": dpo.EXPERIMENT,
    "marl": marl.EXPERIMENT,
}

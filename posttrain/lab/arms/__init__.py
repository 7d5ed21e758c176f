"""The experiments of the lessons, by name: what `posttrain run` can run."""

from posttrain.lab.arms import distillation, dpo, marl, rlhf, rlvr, sdft, sft

EXPERIMENTS = {
    "sft": sft.EXPERIMENT,
    "rlvr": rlvr.EXPERIMENT,
    "dpo": dpo.EXPERIMENT,
    "distillation": distillation.EXPERIMENT,
    "rlhf": rlhf.EXPERIMENT,
    "sdft": sdft.EXPERIMENT,
    "marl": marl.EXPERIMENT,
}

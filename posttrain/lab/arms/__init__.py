"""The experiments of the lessons, by name: what `posttrain run` can run."""

from posttrain.lab.arms import distillation, dpo, marl, rlhf, rlvr, rubric_rl, sdft, sft

EXPERIMENTS = {
    "sft": sft.EXPERIMENT,
    "rlvr": rlvr.EXPERIMENT,
    "dpo": dpo.EXPERIMENT,
    "distillation": distillation.EXPERIMENT,
    "rubric_rl": rubric_rl.EXPERIMENT,
    "rlhf": rlhf.EXPERIMENT,
    "sdft": sdft.EXPERIMENT,
    "marl": marl.EXPERIMENT,
}

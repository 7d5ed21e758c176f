"""What each experiment will cost in tokens, by its name: a plan for every one in
`posttrain.lab.arms`, read off the configurations of its arms."""

from posttrain.lab.plans.answers import job_plan, rlvr_plan, sft_plan
from posttrain.lab.plans.games import marl_plan
from posttrain.lab.plans.teachers import distillation_plan, sdft_plan
from posttrain.lab.plans.texts import dpo_plan, rlhf_plan, rubric_plan
from posttrain.lab.plans.work import Plan, Work

__all__ = ["PLANS", "Plan", "Work", "job_plan"]

PLANS: dict[str, Plan] = {
    "methods/sft": sft_plan,
    "methods/rlvr": rlvr_plan,
    "methods/dpo": dpo_plan,
    "methods/distillation": distillation_plan,
    "methods/rlhf": rlhf_plan,
    "methods/rubric_rl": rubric_plan,
    "methods/sdft": sdft_plan,
    "methods/marl": marl_plan,
}

"""Stories: whether a reward model can learn, from the model's own answers, what people prefer.

As many pairs, steps and the same rate as the RLHF lesson has at laptop scale. The best possible
accuracy is that of people with their own taste, which `tools.gates.stories` measures.
"""

from __future__ import annotations

import tinker
from rich.progress import track

from posttrain.methods import reward_model
from posttrain.stats import Estimate
from posttrain.tasks.human import preferences
from posttrain.tasks.problem import Preference
from posttrain.tasks.stories import stories
from tools.gates.answers import answers
from tools.gates.gate import Gate

GATES = {
    "stories: learned preferences": Gate(
        0.65, 0.9, "share of held-out pairs that a reward model trained on others gets right"
    ),
}
REQUESTS = 256  # of the training split
SAMPLES, PAIRS = 8, 8  # of each request
BATCH = 16  # pairs a step
MAX_TOKENS = 200  # of an answer
LONGEST = 400  # tokens of an answer with its question


def measure(
    service: tinker.ServiceClient, model: str, n: int, seed: int = 0, requests: int = REQUESTS
) -> dict[str, Estimate]:
    """The gate on pairs about `n` held-out requests, by a reward model that starts from `model` and
    sees each pair about `requests` others once."""
    sampler = service.create_sampling_client(base_model=model).result()
    shown, held_out = (
        compared(sampler, split, count, seed) for split, count in (("train", requests), ("test", n))
    )
    learner = service.create_lora_training_client(model, rank=16, seed=seed).result()
    pairs = reward_model.reward_pairs(sampler.get_tokenizer(), shown, max_tokens=LONGEST)
    cfg = reward_model.Config(
        learning_rate=3e-3, batch_size=BATCH, steps=len(pairs) // BATCH, seed=seed
    )
    for _ in track(
        reward_model.train(learner, pairs, cfg), "reward model", cfg.steps, transient=True
    ):
        pass
    rater = learner.save_weights_and_get_sampling_client().result()
    found = reward_model.fidelity(rater, held_out)
    return {"stories: learned preferences": found.accuracy}


def compared(sampler: tinker.SamplingClient, split: str, n: int, seed: int) -> list[Preference]:
    """Pairs of answers to each of `n` requests, as a simulated human prefers them."""
    requests = stories(split, n, seed=seed)
    asked = [request.question for request in requests]
    told = answers(sampler, asked, SAMPLES, seed=seed, max_tokens=MAX_TOKENS)
    return [
        pair
        for request, texts in zip(requests, told, strict=True)
        for pair in preferences(request, texts, seed, pairs=PAIRS)
    ]

"""A language model that compares two answers, read from the odds of the two letters it may say."""

from __future__ import annotations

import math

import tinker

from posttrain.datums import chat_prompt
from posttrain.tasks.problem import Item
from posttrain.win_rate import Judge

QUESTION = """Here are a request and two answers to it.

Request: {question}

Answer A: {a}

Answer B: {b}

Which answer is better, all in all? Say A or B, and nothing else."""


def pairwise(sampler: tinker.SamplingClient) -> Judge:
    """P(the first answer is better) = p("A") / (p("A") + p("B")), as the judge's next token.

    A judge may like the first place: ask in both orders and take the mean, as
    `posttrain.win_rate` does.

    Raises:
        ValueError: A and B are not different first tokens for this model.
    """
    tokenizer = sampler.get_tokenizer()
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB"]
    if letters[0] == letters[1]:
        raise ValueError("the judge's tokenizer gives A and B the same first token")

    def judge(item: Item, a: str, b: str) -> float:
        prompt = chat_prompt(tokenizer, QUESTION.format(question=item.question, a=a, b=b))
        asked = [
            sampler.compute_logprobs(tinker.ModelInput.from_ints([*prompt, letter]))
            for letter in letters
        ]
        first, second = (future.result()[-1] or 0.0 for future in asked)
        return 0.5 * (1 + math.tanh((first - second) / 2))  # a sigmoid that does not overflow

    return judge

"""The bugs that post-training libraries have had, each as one exact change of this repository.

`tools/mutants.py` plants them one at a time and asks which test notices. A bug is the text that
stands in a file and what would stand there if somebody had made the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

METHODS = "posttrain/methods"


@dataclass(frozen=True)
class Bug:
    """One mistake, and the test files that ought to notice it, the fastest first."""

    name: str
    mistake: str  # in words, for the report
    file: str  # relative to the repository
    before: str  # occurs exactly once in the file
    after: str
    tests: tuple[str, ...]


BUGS = [
    # What is trained, and what is not.
    Bug(
        "eos-masked",
        "The end-of-sequence token carries no loss, so the model never learns to stop",
        "posttrain/datums.py",
        "weights = [0.0] * (len(prompt) - 1) + learned\n",
        "weights = [0.0] * (len(prompt) - 1) + learned[:-1] + [0.0]\n",
        ("tests/test_datums.py",),
    ),
    Bug(
        "padding-is-eos",
        "Padding is the end token, and whatever is padding is masked: all end tokens are",
        f"{METHODS}/sft.py",
        "*chat_turns(tokenizer, d.question, d.turns or [d.answer]),",
        "(tokens := chat_turns(tokenizer, d.question, d.turns or [d.answer])[0]),\n"
        "            [token != tokenizer.eos_token_id for token in tokens],",
        ("tests/methods/test_sft.py",),
    ),
    Bug(
        "prompt-trained",
        "Prompt tokens have the advantage of the completion, and with them all that an opponent "
        "said before it",
        "posttrain/datums.py",
        "advantages = torch.tensor([0.0] * before + list(each))",
        "advantages = torch.tensor([each[0]] * before + list(each))",
        ("tests/test_datums.py",),
    ),
    Bug(
        "tool-tokens-trained",
        "What a tool wrote has the advantage of what the policy wrote",
        "posttrain/rollouts.py",
        "return [advantage if sampled else 0.0 for sampled in self.sampled]",
        "return [advantage for _ in self.sampled]",
        ("tests/test_rollouts.py",),
    ),
    Bug(
        "tool-tokens-imitated",
        "In demonstrations with a tool, its answers are learned as if the assistant had given them",
        "posttrain/datums.py",
        "own = [i % 2 == 0 for i, part in enumerate(parts) for _ in part]",
        "own = [True for part in parts for _ in part]",
        ("tests/test_rollouts.py",),
    ),
    Bug(
        "opponent-trained",
        "In a game against a past self, its moves are trained as the learner's own",
        f"{METHODS}/marl.py",
        "            sides = sides_of(matches, i, learner.rollouts, cfg.fine)\n",
        "            sides = sides_of(matches, i, learner.rollouts, cfg.fine)\n"
        "            for other, player in enumerate(players):\n"
        "                if other >= len(learners) and isinstance(player, PolicyPlayer):\n"
        "                    sides += sides_of(matches, other, player.rollouts)\n",
        ("tests/methods/test_marl.py",),
    ),
    Bug(
        "double-bos",
        "A BOS is put before a conversation that the chat template has begun with one",
        "posttrain/renderers.py",
        "return [bos, *tokens] if adds and tokens[:1] != [bos] else tokens",
        "return [bos, *tokens] if adds else tokens",
        ("tests/test_renderers.py",),
    ),
    # Log-probabilities that belong to something else.
    Bug(
        "targets-not-shifted",
        "A position is trained on the token that it reads, not on the next one",
        "posttrain/datums.py",
        '"target_tokens": TensorData.from_torch(torch.tensor(tokens[1:])),\n            "weights"',
        '"target_tokens": TensorData.from_torch(torch.tensor(tokens[:-1])),\n            "weights"',
        ("tests/test_datums.py",),
    ),
    Bug(
        "sampler-logprobs-shifted",
        "The sampler's log-probabilities are off by one token in the ratio",
        "posttrain/datums.py",
        "q = torch.tensor([0.0] * before + list(logprobs))",
        "q = torch.tensor([0.0] * (before + 1) + list(logprobs)[:-1])",
        ("tests/test_datums.py",),
    ),
    Bug(
        "reference-logprobs-shifted",
        "The reference's log-probabilities are off by one token in DPO",
        f"{METHODS}/dpo.py",
        "for s, w in zip(scored[1:], d.loss_fn_inputs",
        "for s, w in zip(scored[:-1], d.loss_fn_inputs",
        ("tests/methods/test_dpo.py",),
    ),
    Bug(
        "wrong-old-logprobs",
        "The ratio is taken to log-probabilities that nobody sampled with: its denominator is 1",
        f"{METHODS}/rlvr.py",
        "policy_datum(rollout.prompt, rollout.tokens, rollout.logprobs, rollout.spread(scaled))",
        "policy_datum(\n"
        "            rollout.prompt, rollout.tokens, [0.0] * len(rollout.tokens), "
        "rollout.spread(scaled)\n"
        "        )",
        ("tests/methods/test_rlvr.py",),
    ),
    Bug(
        "top-p-in-rl",
        "Rollouts are drawn with top-p, so the sampler is not the distribution in the ratio",
        "posttrain/rollouts.py",
        "max_tokens=ask.max_tokens, seed=ask.seed, temperature=temperature, stop=stop\n",
        "max_tokens=ask.max_tokens, seed=ask.seed, temperature=temperature, stop=stop, top_p=0.8\n",
        ("tests/test_rollouts.py",),
    ),
    # Divergences and references.
    Bug(
        "kl-swapped",
        "KL(p || q) is computed in the other direction",
        "posttrain/divergences.py",
        "return _mean_gap(p, p, q)",
        "return _mean_gap(q, q, p)",
        ("tests/test_divergences.py",),
    ),
    Bug(
        "distillation-sign",
        "On-policy distillation pays where the student is surer than the teacher",
        f"{METHODS}/objectives.py",
        "(-k1(torch.tensor(text.logprobs), q_T) * counted_T / total).tolist()",
        "(k1(torch.tensor(text.logprobs), q_T) * counted_T / total).tolist()",
        ("tests/methods/test_objectives.py",),
    ),
    Bug(
        "kl-paid",
        "The policy is paid for moving away from the reference",
        f"{METHODS}/rlhf.py",
        "return rewards_P_G - beta * log_ratios_P_G",
        "return rewards_P_G + beta * log_ratios_P_G",
        ("tests/methods/test_rlhf.py",),
    ),
    Bug(
        "reference-drifts",
        "In RLHF the reference is the policy as it is now, so that no distance is ever charged",
        f"{METHODS}/rlhf.py",
        "    payment = kl_priced(reward, reference, cfg.beta)\n",
        "    def payment(batch_P: Any, groups_P_G: Any) -> Any:\n"
        "        now = policy.save_weights_and_get_sampling_client().result()\n"
        "        return kl_priced(reward, now, cfg.beta)(batch_P, groups_P_G)\n\n",
        ("tests/methods/test_rlhf.py",),
    ),
    Bug(
        "dpo-reference-drifts",
        "In DPO the reference is the policy as it is now, so the loss stays at log 2",
        f"{METHODS}/dpo.py",
        "chosen = Logps(policy_D[0::2], reference_B[:, 0], length_D[0::2])",
        "chosen = Logps(policy_D[0::2], policy_D[0::2].detach(), length_D[0::2])",
        ("tests/methods/test_dpo.py",),
    ),
    Bug(
        "self-teacher-drifts",
        "In SDFT the self-teacher that should stay as long as it is told is renewed every step",
        f"{METHODS}/sdft.py",
        "    every = cfg.refresh or max(cfg.steps, 1)\n",
        "    every = min(cfg.refresh, 1) or max(cfg.steps, 1)\n",
        ("tests/methods/test_sdft.py",),
    ),
    # Preferences.
    Bug(
        "dpo-pair-swapped",
        "Chosen and rejected answer change places on their way into the datums",
        f"{METHODS}/dpo.py",
        "data_D += [supervised_datum(prompt, chosen), supervised_datum(prompt, rejected)]",
        "data_D += [supervised_datum(prompt, rejected), supervised_datum(prompt, chosen)]",
        ("tests/methods/test_dpo.py",),
    ),
    Bug(
        "dpo-per-token",
        "DPO takes means over tokens where its derivation has sums: long answers count for less",
        f"{METHODS}/dpo.py",
        "x[w > 0].double().sum() for x, w in",
        "x[w > 0].double().mean() for x, w in",
        ("tests/methods/test_dpo.py",),
    ),
    Bug(
        "order-not-swapped",
        "A pairwise judge is asked in one order only, and its liking for a place stays",
        f"{METHODS}/reward_model.py",
        "lose=lambda asked, chosen, rejected: better_prompt(asked, rejected, chosen),",
        "lose=lambda asked, chosen, rejected: better_prompt(asked, chosen, rejected),",
        ("tests/methods/test_reward_model.py",),
    ),
    # Rewards and advantages.
    Bug(
        "rewards-misaligned",
        "Each rollout gets the reward of its neighbour",
        f"{METHODS}/rlvr.py",
        "return torch.tensor(paid), {}",
        "return torch.tensor(paid).roll(1, 1), {}",
        ("tests/methods/test_rlvr.py",),
    ),
    Bug(
        "rewards-transposed",
        "A reward model's scores are read group by group where they come problem by problem",
        f"{METHODS}/rlhf.py",
        "combine(gaps.view(len(models), len(groups_P_G), -1))",
        "combine(gaps.view(len(models), -1, len(groups_P_G)).transpose(1, 2))",
        ("tests/methods/test_rlhf.py",),
    ),
    Bug(
        "unreadable-is-right",
        "An answer that cannot be read is paid as a right one",
        f"{METHODS}/rlvr.py",
        "    return float(problem.grade(answer).correct)\n",
        "    grade = problem.grade(answer)\n    return float(grade.correct or not grade.parsed)\n",
        ("tests/methods/test_rlvr.py",),
    ),
    Bug(
        "unreadable-verdict-pays",
        "A criterion that the judge does not answer is credited to the text",
        f"{METHODS}/rubric_judges.py",
        "float(case.criterion.importance is Importance.PITFALL) if credit is None else credit",
        "float(case.criterion.importance is not Importance.PITFALL) if credit is None else credit",
        ("tests/methods/test_rubric_rl.py",),
    ),
    Bug(
        "not-centred",
        "Rewards are used as advantages, without the group's baseline",
        "posttrain/advantages.py",
        "return rewards_P_G - rewards_P_G.mean(1, keepdim=True)",
        "return rewards_P_G",
        ("tests/test_advantages.py",),
    ),
    Bug(
        "centred-over-the-batch",
        "The baseline is the mean of all prompts: easy ones look good, hard ones bad",
        "posttrain/advantages.py",
        "return rewards_P_G - rewards_P_G.mean(1, keepdim=True)",
        "return rewards_P_G - rewards_P_G.mean()",
        ("tests/test_advantages.py",),
    ),
    Bug(
        "seats-share-a-baseline",
        "In games the luck of the first mover is taken for skill",
        f"{METHODS}/marl.py",
        "(number, match.start.name, seat),\n",
        "(number, match.start.name, 0),\n",
        ("tests/methods/test_marl.py",),
    ),
    Bug(
        "other-seats-return",
        "A side is paid what its opponent won",
        f"{METHODS}/marl.py",
        "match.returns[seat] - fine",
        "match.returns[1 - seat] - fine",
        ("tests/methods/test_marl.py",),
    ),
    # Means over the wrong number of things.
    Bug(
        "mean-of-means",
        "Each example is averaged for itself and then all of them: short ones count for more",
        "posttrain/datums.py",
        'datum.loss_fn_inputs["weights"].to_torch() / total\n',
        'datum.loss_fn_inputs["weights"].to_torch()\n'
        '                    / (datum.loss_fn_inputs["weights"].to_torch().sum() * len(data_D))\n',
        ("tests/test_datums.py",),
    ),
    Bug(
        "micro-batch-mean",
        "The engine averages over the parts in which it computes a batch",
        "posttrain/engine/trainer.py",
        "gradients = self.add(gradients, per_datum.sum())",
        "gradients = self.add(gradients, per_datum.mean())",
        ("tests/engine/test_trainer.py",),
    ),
    Bug(
        "length-normalised",
        "Each completion's loss is divided by its length, so long wrong answers cost less a token",
        "posttrain/advantages.py",
        "return torch.full(lengths_P_G.shape, 1 / lengths_P_G.numel())",
        "return 1 / (lengths_P_G.numel() * lengths_P_G)",
        ("tests/test_advantages.py",),
    ),
    # Sampling and state.
    Bug(
        "stale-sampler",
        "Rollouts of every step come from the policy as it was at the first one",
        f"{METHODS}/rlvr.py",
        "            sampler = policy.save_weights_and_get_sampling_client().result()\n"
        "            batch = sample_batch(",
        "            if step == start:\n"
        "                sampler = policy.save_weights_and_get_sampling_client().result()\n"
        "            batch = sample_batch(",
        ("tests/methods/test_rlvr.py",),
    ),
    Bug(
        "stale-student",
        "In distillation the student's texts come from the policy as it was at the first step",
        f"{METHODS}/distillation.py",
        "        student = policy.save_weights_and_get_sampling_client().result()\n",
        "        if step == start:\n"
        "            student = policy.save_weights_and_get_sampling_client().result()\n",
        ("tests/methods/test_distillation.py",),
    ),
    Bug(
        "stale-player",
        "In games the learner plays as it was at the first step",
        f"{METHODS}/marl.py",
        "        samplers = [future.result() for future in saving]\n",
        "        if step == start:\n"
        "            samplers = [future.result() for future in saving]\n",
        ("tests/methods/test_marl.py",),
    ),
    Bug(
        "duplicate-seeds",
        "All prompts of a batch are sampled with one seed: equal prompts get equal answers",
        "posttrain/rollouts.py",
        "_Ask(prompt, size, max_tokens, item_seed(seed, i))",
        "_Ask(prompt, size, max_tokens, seed)",
        ("tests/test_rollouts.py",),
    ),
    Bug(
        "same-seed-every-step",
        "Every step samples with the seed of the first",
        f"{METHODS}/rlvr.py",
        "max_tokens=cfg.max_tokens, seed=item_seed(cfg.seed, step, number),",
        "max_tokens=cfg.max_tokens, seed=item_seed(cfg.seed, number),",
        ("tests/methods/test_rlvr.py",),
    ),
    Bug(
        "group-of-copies",
        "All samples of a request draw the same numbers, so a group is one answer many times",
        "posttrain/engine/sampler.py",
        "np.random.Philox(key=[seed, i])",
        "np.random.Philox(key=[seed, 0])",
        ("tests/engine/test_sampler.py",),
    ),
    Bug(
        "resume-repeats-data",
        "A resumed run begins the data again",
        f"{METHODS}/sft.py",
        "indices = batch_indices(len(data), cfg.batch_size, cfg.seed, step)",
        "indices = batch_indices(len(data), cfg.batch_size, cfg.seed, step - start)",
        ("tests/methods/test_sft.py",),
    ),
    Bug(
        "resume-forgets-adam",
        "A resumed run begins with a fresh optimizer",
        "posttrain/lab/stage.py",
        "future = service.create_training_client_from_state_with_optimizer(run.checkpoint)",
        "future = service.create_training_client_from_state(run.checkpoint)",
        ("tests/test_resume.py",),
    ),
]

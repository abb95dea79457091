"""Every metric's name, once: what it means, in which unit. Docs and report read this table."""

METRICS: dict[str, str] = {
    # the update stage, per optimizer step; names as in TRL where TRL has them
    "loss": "mean weighted loss of the global batch",
    "grad_norm": "gradient norm before clipping",
    "learning_rate": "learning rate of the step",
    "rewards/chosen": "mean beta (log pi - log ref) of the preferred responses",
    "rewards/rejected": "the same of the other responses",
    "rewards/margins": "mean difference of the two",
    "rewards/accuracies": "share of pairs with a positive margin; a margin of zero counts half",
    "logps/chosen": "mean log pi of the preferred responses, nats a sequence",
    "logps/rejected": "the same of the other responses",
    "sail/score_to_plain_ratio": "mean size of the extra terms' coefficients over the plain term's",
    "sail/baseline": "b of the label table",
    "sail/importance_cut_share": "share of pairs whose importance weight was cut",
    "sail/importance_ess": "effective sample size of the importance weights, as a share",
    # evaluation, per round
    "eval/reward": "mean score of samples on held-out prompts by the headline scorer",
    "eval/win_rate": "P(score above the starting policy's on the same prompt); ties count half",
    "eval/win_rate_low": "lower end of the 95 % bootstrap interval over prompts",
    "eval/win_rate_high": "upper end of the same",
    "objective/kl": "mean sequence KL(policy || reference), full vocabulary per state, nats",
    "objective/kl_log_ratio": "the same by log pi - log ref of the samples, nats",
    "rewards/accuracies_offline": "implicit reward accuracy on held-out dataset pairs",
    "rewards/accuracies_online": "implicit reward accuracy on pairs drawn from the policy, labels by the scorer",
    "completions/mean_length": "tokens",
    "completions/eos_rate": "share of samples that ended by themselves",
    "completions/distinct_share": "distinct responses over responses",
    # labels, per round
    "labels/pairs": "pairs that reach the update",
    "labels/dropped_truncated": "samples dropped because they hit the length limit",
    "labels/dropped_empty": "samples dropped because they are empty",
    "labels/dropped_identical": "pairs dropped because both responses are equal",
    "labels/dropped_ties": "pairs dropped for a tie",
    "labels/dropped_margin": "pairs dropped for a score difference below hygiene.min_margin",
}

"""How far the policy has moved from its reference, in nats a sequence."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sail.core.records import SampleGroup
from sail.policy.devices import free_memory, to_device
from sail.policy.loading import Checkpoint, load_policy
from sail.policy.logprobs import microbatches, sequence_kls
from sail.policy.rows import Row


def kl_between(
    policy: Checkpoint, reference: Checkpoint, groups: Sequence[SampleGroup], *, bf16: bool, max_tokens: int
) -> float:
    """mean_kl of two checkpoints; the same checkpoint twice is 0 and loads nothing."""
    if policy.key == reference.key:
        return 0.0
    mean = mean_kl(load_policy(policy), load_policy(reference), groups, bf16=bf16, max_tokens=max_tokens)
    free_memory()
    return mean


def mean_kl(
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    groups: Sequence[SampleGroup],
    *,
    bf16: bool = False,
    max_tokens: int = 4096,
) -> float:
    """mean over samples y ~ pi of sum_t KL(pi(.|s_t) || ref(.|s_t)), full vocabulary per state, nats, >= 0.

    The chain rule of KL makes this unbiased for the sequence KL, with less variance than the log-ratio.
    max_tokens: of one forward pass; memory is about 5 x max_tokens x vocabulary x 4 bytes.
    """
    device = to_device(policy)
    to_device(reference)
    pairs = [(group.prompt, sample) for group in groups for sample in group.samples]
    rows = [Row(prompt.token_ids, sample.token_ids) for prompt, sample in pairs if sample.token_ids]
    total = 0.0
    for batch in microbatches(policy, [[row] for row in rows], max_tokens):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total += float(sequence_kls(policy, reference, [rows[index] for index in batch]).sum())
    return max(total, 0.0) / len(pairs)  # float32 rounding can leave -1e-9


def mean_log_ratio(policy_logps: Mapping[str, float], reference_logps: Mapping[str, float]) -> float:
    """mean over samples y ~ pi of log pi(y|x) - log ref(y|x), nats; unbiased for the KL, may be negative."""
    return float(np.mean([logp - reference_logps[response_id] for response_id, logp in policy_logps.items()]))

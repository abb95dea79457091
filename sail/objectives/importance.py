"""Importance weights for samples that an older (or warmer) policy drew."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sail.core.errors import UserError

ImportanceMode = Literal["sequence_mask", "truncate", "none"]
ApplyTo = Literal["all", "score"]


class ImportanceWeights(NamedTuple):
    """The weights of B pairs, and how many were cut."""

    weights: Tensor
    """[B], >= 0, detached"""
    cut_share: Tensor
    """0-d in [0, 1]: share of pairs whose ratio exceeded the cap"""


def importance_weights(
    logps: Tensor, behavior_logps: Tensor, *, mode: ImportanceMode = "sequence_mask", cap: float = 2.0
) -> ImportanceWeights:
    """w = pi_theta / pi_behavior of each pair's policy responses, cut at `cap`.

    logps, behavior_logps: [B], nats, summed over every response of the pair that the policy drew (the same ones as
    in S; dataset responses have no ratio). Behaviour log-probs are those of the distribution that was really
    sampled, temperature included. mode, with r = exp(logps - behavior_logps):
      sequence_mask  r where r <= cap, else 0        truncate  min(r, cap)        none  1
    Exact off-policy while nothing is cut; equal to 1 on fresh samples where the two log-probs agree to the bit
    (CPU, float32). Log-probs normalised on a truncated support (top-p, top-k, min-p) cannot be repaired this way.
    Raises UserError for an unknown mode or cap < 1 (which would cut fresh samples).
    """
    if not cap >= 1.0:
        raise UserError(f"cap is {cap}", where="importance_sampling.cap", cure="Use a cap of at least 1")
    ratios = torch.exp(logps.detach() - behavior_logps.detach())
    over = ratios > cap
    if mode == "sequence_mask":
        weights = torch.where(over, torch.zeros_like(ratios), ratios)
    elif mode == "truncate":
        weights = ratios.clamp(max=cap)
    elif mode == "none":
        weights, over = torch.ones_like(ratios), torch.zeros_like(over)
    else:
        raise UserError(
            f"unknown mode {mode!r}",
            where="importance_sampling.mode",
            cure="Use one of sequence_mask, truncate, none",
        )
    return ImportanceWeights(weights, over.to(ratios.dtype).mean())


def plain_weights(weights: Tensor, apply_to: ApplyTo) -> Tensor:
    """OnlineTerms.plain_weight [B] for a choice of `apply_to`.

    all: every term carries the ratio, the exact off-policy gradient. score: only the score term does, which leaves
    an error (tests/objectives/test_importance.py) but spares the plain term the variance of the weights.
    Raises UserError for another word.
    """
    if apply_to == "all":
        return weights
    if apply_to == "score":
        return torch.ones_like(weights)
    raise UserError(f"unknown choice {apply_to!r}", where="importance_sampling.apply_to", cure="Use all or score")

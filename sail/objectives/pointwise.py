"""Losses of a single response: one value per response."""

import torch
from torch import Tensor

from sail.objectives import parameters
from sail.objectives.responses import Responses, log_ratio, mean_logps, targets_of


def sft(responses: Responses) -> Tensor:
    """-log pi(y|x) / |y|, shape [B], nats per token, >= 0: supervised fine-tuning on a response.

    Each response weighs the same whatever its length, so the loss of a batch does not depend on how the batch is
    cut into microbatches (the cross-entropy over all tokens of a batch, TRL's `sft`, weighs long responses more).
    A response without tokens has loss 0.
    """
    return -mean_logps(responses)


def nll(responses: Responses) -> Tensor:
    """-log pi(y|x), shape [B], nats, >= 0: maximum likelihood, summed over tokens.

    Filtering alignment (Hu et al. 2023, arXiv 2308.12050) is this loss over the rows a filter keeps; the mean is over
    the kept rows, so the threshold does not move the learning rate.
    """
    return -responses.logps


def rwr(responses: Responses, log_z: Tensor, *, temperature: float = 1.0, cap: float = 20.0) -> Tensor:
    """-w log pi(y|x), w = min(cap, exp(r / temperature - log_z)), shape [B], nats: reward-weighted regression.

    log_z, 0-d, is the log of the mean of exp(r / temperature) over the global batch (rwr_log_z), which makes the mean
    weight 1 where nothing is capped. On responses of the reference the population optimum is pi proportional to
    pi_ref exp(r / temperature) (Peters and Schaal 2007; arXiv 2308.12050).
    """
    parameters.positive(temperature=temperature, cap=cap)
    weights = torch.exp(targets_of(responses) / temperature - log_z).clamp_max(cap)
    return -weights.detach() * responses.logps


def kto(
    responses: Responses, z0: Tensor, *, beta: float = 0.1, desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """w_D (1 - sigmoid(beta (s - z0))) for a thumb up, w_U (1 - sigmoid(beta (z0 - s))) for one down, shape [B].

    s the log-ratio, z0 >= 0 (0-d, detached) the estimate of KL(pi || pi_ref) from mismatched responses (kto_z0).
    Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
    """
    parameters.positive(beta=beta)
    parameters.not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    gap = beta * (log_ratio(responses) - z0.detach())
    up = targets_of(responses)
    return up * desirable_weight * torch.sigmoid(-gap) + (1.0 - up) * undesirable_weight * torch.sigmoid(gap)


def sppo(responses: Responses, *, beta: float = 0.001) -> Tensor:
    """(s - (P - 1/2) / beta)^2, shape [B], nats^2, P the response's win rate against the policy's own samples.

    s is the log-ratio to the policy that drew the samples (reference: previous); eta of the paper is 1 / beta. The 1/2
    stands for beta log Z of the multiplicative-weights update pi_t exp(P / beta) / Z, its limit as beta grows.
    Wu et al. 2024, arXiv 2405.00675, eq. 4.6.
    """
    parameters.positive(beta=beta)
    return (log_ratio(responses) - (targets_of(responses) - 0.5) / beta).square()

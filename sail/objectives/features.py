"""FPO: a preference loss that holds the features of the dispreferred response near the reference's.

Yin et al. 2024, arXiv 2411.07618. Features are what a sparse autoencoder reads in one layer, averaged over a response
(sail/policy/features.py); here they are numbers like any others.
"""

import torch
from torch import Tensor

from sail.objectives import parameters
from sail.objectives.responses import Responses, mean_log_ratio_gap


def fpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    """-log sigmoid(beta [(r(chosen) - r(rejected)) - alpha (M(rejected) - sg(M(chosen)))]), shape [B], > 0.

    r is the log-ratio per token and M the feature distance to the reference (arXiv 2411.07618, eq. 11 with the
    constraint of TDPO2, eq. 4). The gradient flows into the distance of the rejected side alone.
    """
    parameters.positive(beta=beta)
    parameters.not_negative(alpha=alpha)
    constraint = _distances(rejected) - _distances(chosen).detach()
    return -torch.nn.functional.logsigmoid(beta * (mean_log_ratio_gap(chosen, rejected) - alpha * constraint))


def feature_distances(features: Tensor, reference: Tensor, k: int) -> Tensor:
    """M = (1/k) sum over i in I_k of (f_i - f_ref_i)^2, [B, F] and [B, F] to [B] (arXiv 2411.07618, eq. 10).

    I_k joins the k largest features of both sides; a feature that is 0 is nobody's largest. (The authors' code takes
    the policy's k alone.) Differentiable in features; the choice of features is not.
    """
    k = min(k, features.shape[-1])
    chosen = _largest(features, k) | _largest(reference, k)
    return ((features - reference).square() * chosen).sum(-1) / k


def _largest(features: Tensor, k: int) -> Tensor:
    """[B, F] bool"""
    positions = features.detach().topk(k, dim=-1).indices
    return torch.zeros_like(features, dtype=torch.bool).scatter(-1, positions, True) & (features > 0)


def _distances(responses: Responses) -> Tensor:
    assert responses.feature_distances is not None, "a loss of features needs components.sae"
    return responses.feature_distances

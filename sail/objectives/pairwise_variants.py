"""Rarer losses of a pair, all from summed log-ratios: TRL's exo_pair, nca_pair, bco_pair, apo_*, discopop; DPO-PRO.

Values are [B], unreduced, "the loss if `chosen` wins". s = log pi - log pi_ref, h = s_w - s_l, z = beta h.
None has a preference link: nca, bco_pair and apo_* are no functions of the gap h, exo is minimised at
z = (2p - 1) log((1 - epsilon) / epsilon) rather than at logit p, discopop is not convex, and dpo_pro rests at
z = 0 for a whole interval of p.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.objectives.parameters import at_most_one, flip_rate, not_negative, positive, smoothing
from sail.objectives.responses import Responses, log_ratio, log_ratio_gap


def exo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, epsilon: float = 1e-3) -> Tensor:
    """KL(Bernoulli(sigmoid(z)) || Bernoulli(1 - epsilon)), shape [B], nats, >= 0.

    Ji et al. 2024, arXiv 2402.00856, eq. 16:
    sigmoid(z) [log sigmoid(z) - log(1 - epsilon)] + sigmoid(-z) [log sigmoid(-z) - log epsilon], 0 < epsilon < 1/2:
    the reverse of cdpo's KL. Infinite at epsilon = 0. A soft label p would be Bernoulli(p) as the second argument;
    the mean over labels is another loss, so soft labels are refused.
    """
    positive(beta=beta)
    smoothing(epsilon)
    z = beta * log_ratio_gap(chosen, rejected)
    won = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-epsilon))
    return won + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(epsilon))


def nca(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta s_w) - [log sigmoid(-beta s_w) + log sigmoid(-beta s_l)] / 2, shape [B], nats, > 0.

    Noise contrastive alignment for two responses and hard labels (Chen et al. 2024, arXiv 2402.05369).
    """
    positive(beta=beta)
    won, lost = beta * log_ratio(chosen), beta * log_ratio(rejected)
    return -F.logsigmoid(won) - 0.5 * F.logsigmoid(-won) - 0.5 * F.logsigmoid(-lost)


def bco_pair(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta s_w) - log sigmoid(-beta s_l), shape [B], nats, > 0 (Jung et al. 2024, arXiv 2404.04656).

    Without the paper's reward shift, a running mean, which would be state; TRL's has none either.
    """
    positive(beta=beta)
    return -F.logsigmoid(beta * log_ratio(chosen)) - F.logsigmoid(-beta * log_ratio(rejected))


def apo_zero(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """1 - sigmoid(beta s_w) + sigmoid(beta s_l), shape [B], in (0, 2).

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7. Winner up, loser down:
    for winners better than what the policy writes.
    """
    positive(beta=beta)
    return torch.sigmoid(-beta * log_ratio(chosen)) + torch.sigmoid(beta * log_ratio(rejected))


def apo_down(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """sigmoid(beta s_w) + 1 - sigmoid(z), shape [B], in (0, 2).

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8. Both down, the loser more:
    for winners worse than what the policy writes.
    """
    positive(beta=beta)
    return torch.sigmoid(beta * log_ratio(chosen)) + torch.sigmoid(-beta * log_ratio_gap(chosen, rejected))


def discopop(chosen: Responses, rejected: Responses, *, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """(1 - m) (-log sigmoid(z)) + m exp(-z), m = sigmoid(z / tau), shape [B], > 0.

    Lu et al. 2024, arXiv 2406.08414, eq. 5, found by search; not convex in z. 0 < tau <= 1, .05 in the paper: above 1
    the exponential would outgrow m.
    """
    positive(beta=beta)
    at_most_one(tau=tau)
    z = beta * log_ratio_gap(chosen, rejected)
    exponential = torch.exp(F.logsigmoid(z / tau) - z)  # m exp(-z) without 0 times infinity
    return -torch.sigmoid(-z / tau) * F.logsigmoid(z) + exponential


def dpo_pro(
    chosen: Responses, rejected: Responses, *, beta: float = 0.1, epsilon: float = 0.1, nu: float = 0.1
) -> Tensor:
    """max over p of -p log sigmoid(z) - (1 - p) log sigmoid(-z), shape [B], nats, > 0.

    DPO with preference robustness (Kim et al. 2025, arXiv 2510.23590), for hard labels of a stated trust
    q = 1 - epsilon, 0 <= epsilon < 1/2: p ranges over the chi-squared ball |p - q| <= sqrt(nu q (1 - q)), nu >= 0, cut
    to [0, 1]. The worst p is q - radius where z > 0 and q + radius where z < 0, so the loss is cdpo's plus
    (cut radius) |z|. nu = 0 is cdpo and epsilon = 0 is dpo: a label that is certain has no ball.
    The radius depends on q, so a soft label is no mixture of the two outcomes and is refused: state it as epsilon.
    """
    positive(beta=beta)
    flip_rate(epsilon)
    not_negative(nu=nu)
    z = beta * log_ratio_gap(chosen, rejected)
    radius = math.sqrt(nu * epsilon * (1.0 - epsilon))
    won, lost = 1.0 - epsilon, epsilon
    robust = F.relu(z) * min(radius, won) + F.relu(-z) * min(radius, lost)
    return -won * F.logsigmoid(z) - lost * F.logsigmoid(-z) + robust

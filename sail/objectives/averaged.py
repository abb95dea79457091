"""Losses of a pair from log-probs averaged over tokens: heuristic, whatever summed loss they resemble.

No KL-regularised problem is behind an average over tokens, so none of them may claim the reward-policy equivalence.
Values are [B], unreduced, "the loss if `chosen` wins"; m(y) = log pi(y|x) / |y|, r(y) = s(y) / |y| with s the
log-ratio. A response without tokens has average 0.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.objectives.parameters import not_negative, positive
from sail.objectives.responses import Responses, mean_log_ratio_gap, mean_logps

_NEAREST_TO_CERTAIN = -1e-6
"""nats per token: log-odds have a pole at probability 1, and a gradient beyond 1e6 would be the whole batch's"""


def ipo_mean(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """(r(chosen) - r(rejected) - 1/(2 beta))^2, shape [B], (nats per token)^2, >= 0: TRL's `ipo`.

    Azar et al. 2023, arXiv 2310.12036, eq. 17, with averages in the place of the paper's sums (here: ipo). beta > 0.
    """
    positive(beta=beta)
    return (mean_log_ratio_gap(chosen, rejected) - 1.0 / (2.0 * beta)).square()


def dpo_norm(chosen: Responses, rejected: Responses, *, beta: float = 5.0) -> Tensor:
    """-log sigmoid(beta (r(chosen) - r(rejected))), shape [B], nats, > 0: TRL's `sigmoid_norm`.

    Length-normalised DPO, with a reference and without a margin, hence not SimPO (Lambert et al. 2024, Tulu 3,
    arXiv 2411.15124). beta > 0 acts on nats per token: 5 (OLMo 2's model card) where summed dpo takes 0.1.
    """
    positive(beta=beta)
    return -F.logsigmoid(beta * mean_log_ratio_gap(chosen, rejected))


def simpo(chosen: Responses, rejected: Responses, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """-log sigmoid(beta (m(chosen) - m(rejected)) - gamma), shape [B], nats, > 0 (Meng et al. 2024, arXiv 2405.14734).

    No reference. beta > 0, 2 to 2.5 in the paper (10 for Gemma 2 and Llama 3 v0.2); gamma >= 0 is the target margin
    in the unit of beta m, gamma / beta 0.3 to 0.8. Sensitive to the learning rate: 3e-7 to 1e-6.
    """
    positive(beta=beta)
    not_negative(gamma=gamma)
    return -F.logsigmoid(beta * (mean_logps(chosen) - mean_logps(rejected)) - gamma)


def orpo(chosen: Responses, rejected: Responses, *, odds_weight: float = 0.1) -> Tensor:
    """-m(chosen) - odds_weight log sigmoid(o(chosen) - o(rejected)), shape [B], nats, > 0.

    Hong et al. 2024, arXiv 2403.07691. o = m - log(1 - exp(m)), the log-odds of a token's geometric mean probability.
    No reference: the first term is supervised fine-tuning on the winner. odds_weight >= 0 is the paper's lambda
    (0.1 to 0.25) and TRL's `beta`. In the odds, averages above -1e-6 nats count as -1e-6: there is a pole at 0.
    """
    not_negative(odds_weight=odds_weight)
    gap = _log_odds(chosen) - _log_odds(rejected)
    return -mean_logps(chosen) - odds_weight * F.logsigmoid(gap)


def _log_odds(responses: Responses) -> Tensor:
    mean = mean_logps(responses).clamp(max=_NEAREST_TO_CERTAIN)
    return mean - torch.log(-torch.expm1(mean))

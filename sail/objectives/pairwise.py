"""Losses of a pair: one value per pair, "the loss if `chosen` wins".

Every loss here takes the two sides as Responses and returns [B], unreduced, in nats or in the loss's own unit.
Swapping the two arguments gives the loss if the other side wins; the label table (online.py) uses both.
h is the gap of summed log-ratios, (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected).
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.objectives.responses import Responses, log_ratio_gap


def dpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta h), shape [B], nats, > 0 (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    beta > 0 is the strength of the KL term of the problem it solves. d loss / d h = -beta sigmoid(-beta h).
    TRL calls it `sigmoid`. With labels p it is minimised at h = logit(p) / beta.
    """
    return -F.logsigmoid(beta * log_ratio_gap(chosen, rejected))


def ipo(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """(h - 1/(2 beta))^2, shape [B], nats^2, >= 0 (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    beta > 0 is the paper's tau. Log-probabilities are SUMMED over tokens, as in the paper's algebra; TRL's `ipo`
    averages them over tokens, which changes the meaning of beta by about the response length.
    With labels p it is minimised at h = (2p - 1) / (2 beta).
    """
    return (log_ratio_gap(chosen, rejected) - 1.0 / (2.0 * beta)).square()


def slic(chosen: Responses, rejected: Responses, *, delta: float = 1.0) -> Tensor:
    """max(0, delta - log pi(chosen) + log pi(rejected)), shape [B], nats, >= 0 (Zhao et al. 2023, arXiv 2305.10425).

    delta >= 0 is the margin in nats. There is no reference policy: this is SLiC-HF's first term; its second,
    -lambda log pi(y_ref), is a route of its own with loss `sft` and weight lambda. It is not TRL's `hinge`,
    which is max(0, 1 - beta h).
    """
    return F.relu(delta - chosen.logps + rejected.logps)

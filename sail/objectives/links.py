"""Preference links: the probability a policy gives to "a beats b", read off the loss it is trained with.

If a loss with soft labels p has its minimum where the policy's link equals p, then q_theta = link is the preference
that the policy itself expresses (SAIL, arXiv 2406.15567: the reward-policy equivalence). A link takes the
parameters of its loss and returns log q, so that neither end of [0, 1] loses digits.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.objectives.responses import Responses, log_ratio_gap


def dpo_link(a: Responses, b: Responses, *, beta: float = 0.1) -> Tensor:
    """log q(a beats b) = log sigmoid(beta h), shape [B], nats, < 0 (Bradley-Terry; arXiv 2305.18290, eq. 6)."""
    return F.logsigmoid(beta * log_ratio_gap(a, b))


def ipo_link(a: Responses, b: Responses, *, beta: float = 0.1) -> Tensor:
    """log q(a beats b) = log clip(1/2 + beta h, 0, 1), shape [B], nats, <= 0 (ipo's minimiser, arXiv 2310.12036).

    Outside |h| <= 1/(2 beta) the preference is certain and its gradient is zero. There log 0 is replaced by the
    log of the smallest normal number (about -708 in float64), so that q log q and the gradients stay finite.
    """
    preference = 0.5 + beta * log_ratio_gap(a, b)
    return torch.log(preference.clamp(torch.finfo(preference.dtype).tiny, 1.0))

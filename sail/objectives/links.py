"""Preference links: the probability a policy gives to "a beats b", read off the loss it is trained with.

If a loss with soft labels p has its minimum where the policy's link equals p, then q_theta = link is the preference
that the policy itself expresses (SAIL, arXiv 2406.15567: the reward-policy equivalence). A link takes the
parameters of its loss and returns log q, so that neither end of [0, 1] loses digits. Each is proved in
tests/objectives/test_links.py by minimising its loss.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.objectives.responses import Responses, log_ratio_gap, mean_log_ratio_gap, mean_logps


def dpo_link(a: Responses, b: Responses, *, beta: float = 0.1) -> Tensor:
    """log q(a beats b) = log sigmoid(beta h), shape [B], nats, < 0 (Bradley-Terry; arXiv 2305.18290, eq. 6)."""
    return F.logsigmoid(beta * log_ratio_gap(a, b))


def cdpo_link(a: Responses, b: Responses, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """log q = log clip((sigmoid(beta h) - epsilon) / (1 - 2 epsilon), 0, 1), shape [B], nats, <= 0.

    cdpo smooths the label p to (1 - epsilon) p + epsilon (1 - p); this undoes it. Beyond the most that a certain
    label asks for, |beta h| = log((1 - epsilon) / epsilon), the preference is certain and its gradient zero.
    """
    if epsilon == 0.0:
        return dpo_link(a, b, beta=beta)
    smoothed = torch.sigmoid(beta * log_ratio_gap(a, b))
    return _log_clipped((smoothed - epsilon) / (1.0 - 2.0 * epsilon))


def rdpo_link(a: Responses, b: Responses, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """log q = log[epsilon + (1 - 2 epsilon) sigmoid(beta h)], shape [B], nats, < 0: what the NOISY labeler would say.

    Between epsilon and 1 - epsilon, the labels with which rdpo has a minimum. A policy that labels by it makes the
    labeler's mistakes too, and rdpo takes them out again: the expected loss is that of dpo under dpo's link.
    """
    log_sigmoid = dpo_link(a, b, beta=beta)
    if epsilon == 0.0:
        return log_sigmoid
    floor = torch.full_like(log_sigmoid, math.log(epsilon))
    return torch.logaddexp(floor, log_sigmoid + math.log1p(-2.0 * epsilon))


def ipo_link(a: Responses, b: Responses, *, beta: float = 0.1) -> Tensor:
    """log q(a beats b) = log clip(1/2 + beta h, 0, 1), shape [B], nats, <= 0 (ipo's minimiser, arXiv 2310.12036).

    Outside |h| <= 1/(2 beta) the preference is certain and its gradient is zero. There log 0 is replaced by the
    log of the smallest normal number (about -708 in float64), so that q log q and the gradients stay finite.
    """
    return _log_clipped(0.5 + beta * log_ratio_gap(a, b))


def sppo_link(a: Responses, b: Responses, *, beta: float = 0.001) -> Tensor:
    """log q = log clip((1 + beta h) / 2, 0, 1), shape [B], nats, <= 0: ipo's link at beta / 2 (see sppo_hard)."""
    return ipo_link(a, b, beta=0.5 * beta)


def ipo_mean_link(a: Responses, b: Responses, *, beta: float = 0.1) -> Tensor:
    """log q = log clip(1/2 + beta (r_a - r_b), 0, 1), shape [B], nats, <= 0, r the log-ratio per token. Heuristic."""
    return _log_clipped(0.5 + beta * mean_log_ratio_gap(a, b))


def dpo_norm_link(a: Responses, b: Responses, *, beta: float = 5.0) -> Tensor:
    """log q = log sigmoid(beta (r_a - r_b)), shape [B], nats, < 0, r the log-ratio per token. Heuristic."""
    return F.logsigmoid(beta * mean_log_ratio_gap(a, b))


def simpo_link(a: Responses, b: Responses, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """log q = log sigmoid(softplus(u - gamma) - softplus(-u - gamma)), u = beta (m_a - m_b), shape [B], nats, < 0.

    sigmoid(u) where gamma = 0. With a margin the loss is smallest under labels p where p / (1 - p) =
    (1 + e^(u - gamma)) / (1 + e^(-u - gamma)): within the margin the policy commits itself to little. Heuristic.
    """
    u = beta * (mean_logps(a) - mean_logps(b))
    return F.logsigmoid(F.softplus(u - gamma) - F.softplus(-u - gamma))


def _log_clipped(preference: Tensor) -> Tensor:
    return torch.log(preference.clamp(torch.finfo(preference.dtype).tiny, 1.0))

"""Losses of a pair from summed log-probs: one value per pair, "the loss if `chosen` wins".

Every loss here takes the two sides as Responses and returns [B], unreduced, in nats or in the loss's own unit.
Swapping the two arguments gives the loss if the other side wins; the label table (online.py) uses both.
h is the gap of summed log-ratios, (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected), and z = beta h.
Losses of averages over tokens are in averaged.py, rarer ones in pairwise_variants.py.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.objectives.parameters import flip_rate, not_negative, positive
from sail.objectives.responses import Responses, log_ratio, log_ratio_gap


def dpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta h), shape [B], nats, > 0 (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    beta > 0 is the strength of the KL term of the problem it solves. d loss / d h = -beta sigmoid(-beta h).
    TRL calls it `sigmoid`. With labels p it is minimised at h = logit(p) / beta.
    """
    positive(beta=beta)
    return -F.logsigmoid(beta * log_ratio_gap(chosen, rejected))


def cdpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """-(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z), shape [B], nats, > 0 (conservative DPO, Mitchell 2023).

    dpo with the soft label p = 1 - epsilon, 0 <= epsilon < 1/2: label smoothing. Bounded below, with its minimum at
    z = log((1 - epsilon) / epsilon). TRL's `sigmoid` has taken no notice of label_smoothing since v0.29.
    """
    positive(beta=beta)
    flip_rate(epsilon)
    z = beta * log_ratio_gap(chosen, rejected)
    return -(1.0 - epsilon) * F.logsigmoid(z) - epsilon * F.logsigmoid(-z)


def rdpo(chosen: Responses, rejected: Responses, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """[-(1 - epsilon) log sigmoid(z) + epsilon log sigmoid(-z)] / (1 - 2 epsilon), shape [B], nats.

    Chowdhury et al. 2024, arXiv 2403.00409 (robust DPO; TRL's `robust`). epsilon, 0 <= epsilon < 1/2, is the rate at
    which labels are flipped; the mean over flips is dpo's loss on the true label. On one pair it is unbounded below
    as z grows, and with a soft label p outside [epsilon, 1 - epsilon] it has no minimum: p is the NOISY labeler's.
    """
    positive(beta=beta)
    flip_rate(epsilon)
    z = beta * log_ratio_gap(chosen, rejected)
    return (epsilon * F.logsigmoid(-z) - (1.0 - epsilon) * F.logsigmoid(z)) / (1.0 - 2.0 * epsilon)


def ipo(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """(h - 1/(2 beta))^2, shape [B], nats^2, >= 0 (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    beta > 0 is the paper's tau. Log-probabilities are SUMMED over tokens, as in the paper's algebra; TRL's `ipo`
    averages them over tokens (here: ipo_mean), which changes the meaning of beta by about the response length.
    With labels p it is minimised at h = (2p - 1) / (2 beta).
    """
    positive(beta=beta)
    return (log_ratio_gap(chosen, rejected) - 1.0 / (2.0 * beta)).square()


def slic(chosen: Responses, rejected: Responses, *, delta: float = 1.0) -> Tensor:
    """max(0, delta - log pi(chosen) + log pi(rejected)), shape [B], nats, >= 0 (Zhao et al. 2023, arXiv 2305.10425).

    delta >= 0 is the margin in nats. There is no reference policy: this is SLiC-HF's first term; its second,
    -lambda log pi(y_ref), is a route of its own with loss `sft` and weight lambda. It is not `hinge`,
    which is max(0, 1 - beta h).
    """
    not_negative(delta=delta)
    return F.relu(delta - chosen.logps + rejected.logps)


def hinge(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta h), shape [B], >= 0 (RSO's hinge-norm, Liu et al. 2023, arXiv 2309.06657; TRL's `hinge`).

    beta > 0; 1/beta is the margin in nats. With a reference, hence not SLiC-HF's loss (here: slic), which TRL's
    documentation names as its source. With labels p its minimum is at z = 1 for every p > 1/2: no link.
    """
    positive(beta=beta)
    return F.relu(1.0 - beta * log_ratio_gap(chosen, rejected))


def sppo_hard(chosen: Responses, rejected: Responses, *, beta: float = 0.001) -> Tensor:
    """(s_w - 1/(2 beta))^2 + (s_l + 1/(2 beta))^2, shape [B], nats^2, >= 0 (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

    s = log pi - log pi_ref, summed. SPPO's loss with win rates of 1 and 0; beta > 0 is 1/eta, .001 in the paper.
    It equals (h - 1/beta)^2 / 2 + (s_w + s_l)^2 / 2: half an ipo at beta/2, plus a pull of both sides to the
    reference that does not look at the label. So with labels p the best h is (2p - 1) / beta whatever s_w + s_l is.
    """
    positive(beta=beta)
    target = 0.5 / beta
    return (log_ratio(chosen) - target).square() + (log_ratio(rejected) + target).square()

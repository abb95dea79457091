"""What a pair teaches a reward model: Bradley-Terry, with margins, ties, soft labels and known noise.

One formula holds them all. With d = r_chosen - r_rejected, p = P(chosen beats rejected) as the data says, m the pair's
margin and e the known share of verdicts that are the wrong way round,

    loss = p f(d - m) + (1 - p) f(-d - m),    f(x) = -log((1 - e) P(win | x) + e P(loss | x))

and, where ties are modelled, -log P(tie | d) for a pair with p = 1/2. A tie has no margin: its m counts as 0.

    model          P(win | x)               P(tie | x)                     threshold
    none           sigmoid(x)               0                              -
    rao_kupper     sigmoid(x - log theta)   1 - P(win) - P(loss)           theta > 1, default 3: 1/2 at x = 0
    davidson       e^(x/2) / Z              nu / Z                         nu > 0, default 1: 1/3 at x = 0

with P(loss | x) = P(win | -x) and Z = e^(x/2) + e^(-x/2) + nu. Sources: Bradley and Terry 1952 and Ouyang et al. 2022
(2203.02155, eq. 1); margins: Touvron et al. 2023 (2307.09288, eq. 2); ties: Rao and Kupper 1967, Davidson 1970, their
defaults from Chen et al. 2024 (2409.17431); noise: the likelihood of the verdicts as they were observed (Patrini et al.
2017, 1609.03683: the forward correction). Without ties f is at most -log e: a wrong verdict costs a bounded amount. The
unbiased loss of Natarajan et al. 2013 has its minimum there too in expectation, and none on a finite sample.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(d, p, m), each [B] -> the loss of each pair, [B], nats, >= 0."""


class Outcomes(NamedTuple):
    """log P of each outcome, [B], nats; tie is None in a model without ties."""

    win: Tensor
    loss: Tensor
    tie: Tensor | None


def bradley_terry(x: Tensor, _: float) -> Outcomes:
    """P(win) = sigmoid(x)."""
    return Outcomes(F.logsigmoid(x), F.logsigmoid(-x), None)


def rao_kupper(x: Tensor, theta: float) -> Outcomes:
    """P(win) = sigmoid(x - log theta), P(tie) = (theta^2 - 1) P(win) P(loss)."""
    win, loss = F.logsigmoid(x - math.log(theta)), F.logsigmoid(-x - math.log(theta))
    return Outcomes(win, loss, math.log(theta**2 - 1.0) + win + loss)


def davidson(x: Tensor, nu: float) -> Outcomes:
    """P(win) : P(loss) : P(tie) = e^(x/2) : e^(-x/2) : nu."""
    weights = torch.stack([x / 2, -x / 2, torch.full_like(x, math.log(nu))])
    win, loss, tie = torch.log_softmax(weights, dim=0)
    return Outcomes(win, loss, tie)


TIES: dict[str, Callable[[Tensor, float], Outcomes]] = {
    "none": bradley_terry,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
}
DEFAULT_THRESHOLD = {"none": math.nan, "rao_kupper": 3.0, "davidson": 1.0}


def pair_loss(ties: str = "none", threshold: float | None = None, label_noise: float = 0.0) -> PairLoss:
    """The loss of the table above. label_noise: e, in [0, 1/2)."""
    outcomes, theta = TIES[ties], DEFAULT_THRESHOLD[ties] if threshold is None else threshold

    def preferred(x: Tensor) -> Tensor:
        win, loss, _ = outcomes(x, theta)
        if label_noise == 0.0:
            return -win
        return -torch.logaddexp(math.log1p(-label_noise) + win, math.log(label_noise) + loss)

    def loss(d_B: Tensor, p_B: Tensor, m_B: Tensor) -> Tensor:
        equal_B = p_B == 0.5
        m_B = m_B.masked_fill(equal_B, 0.0)
        loss_B = p_B * preferred(d_B - m_B) + (1.0 - p_B) * preferred(-d_B - m_B)
        tie_B = outcomes(d_B, theta).tie
        return loss_B if tie_B is None else torch.where(equal_B, -tie_B, loss_B)

    return loss

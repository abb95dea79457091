"""What to log of a batch: one function for all losses of a unit, values per row, nothing with a gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sail.objectives.online import PairLosses
from sail.objectives.ppo import ppo_diagnostics
from sail.objectives.responses import Responses, log_ratio


def pair_diagnostics(a: Responses, b: Responses, p_a: Tensor, *, beta: float = 1.0) -> dict[str, Tensor]:
    """TRL's training metrics of each pair, each [B], detached; average them over the global batch.

    p_a [B] in [0, 1]: the label. The chosen side is a where p_a > 1/2, b where p_a < 1/2; a tie chooses half of
    each, so that the order within a pair never shows. reward = beta (log pi - log pi_ref), nats times beta; a loss
    without a beta passes 1, one without a reference (ref_logps nan) has beta log pi for a reward.
    rewards/accuracies is 1 where the chosen reward is strictly larger, 1/2 on a tie.
    """
    reward_a, reward_b = (beta * torch.where(side.ref_logps.isnan(), side.logps, log_ratio(side)).detach()
                          for side in (a, b))  # fmt: skip
    logps_a, logps_b = a.logps.detach(), b.logps.detach()
    chosen_a = 0.5 * (1.0 + torch.sign(p_a.detach() - 0.5))
    margins = (2.0 * chosen_a - 1.0) * (reward_a - reward_b)
    right = (margins > 0).to(margins.dtype)
    return {
        "rewards/chosen": _mix(chosen_a, reward_a, reward_b),
        "rewards/rejected": _mix(chosen_a, reward_b, reward_a),
        "rewards/margins": margins,
        "rewards/accuracies": torch.where(chosen_a == 0.5, chosen_a, right),
        "logps/chosen": _mix(chosen_a, logps_a, logps_b),
        "logps/rejected": _mix(chosen_a, logps_b, logps_a),
    }


def response_diagnostics(responses: Responses, *, cliprange: float = 0.2) -> dict[str, Tensor]:
    """What to log of single responses, each [B], detached: log pi, the log-ratio where there is a reference, and how
    far the policy has moved from a round's estimates where there are some."""
    logged = {"logps/responses": responses.logps.detach()}
    if responses.tokens is not None and responses.tokens.rollout is not None:
        logged |= ppo_diagnostics(responses, cliprange=cliprange)
    if not bool(torch.isnan(responses.ref_logps).any()):
        logged["objective/log_ratio"] = log_ratio(responses).detach()
    return logged


class TermScales(NamedTuple):
    """How hard each term of a pair's loss pulls on the log-probabilities, per pair.

    sail/score_to_plain_ratio = extra.sum() / plain.sum(), both sums over the global batch: 0 at c = 0, and
    c |l - b| / (beta / 2) for dpo labelled by others while policy == reference.
    """

    plain: Tensor
    """[B], >= 0: sum over responses of sum_y p_y |d l_y / d log pi|: the plain term's pull, expected over the label.
    The absolute value stands inside the expectation, because under the policy's own soft label the two outcomes
    of dpo cancel exactly, and a ratio to zero says nothing."""
    extra: Tensor
    """[B], >= 0: sum over responses of |d (row loss - plain term) / d log pi|, c included."""


def term_scales(
    row_loss: Tensor,
    losses: PairLosses,
    p_a: Tensor,
    logps: Sequence[Tensor],
    *,
    plain_weight: float | Tensor = 1.0,
) -> TermScales:
    """Absolute gradient coefficients of the plain and of the online extra terms, each [B], detached.

    row_loss [B]: what a row of the label table returned for `losses` and the label probabilities p_a [B];
    logps: the [B] tensors of log-probabilities from which the losses, the preference and S were computed (two for an
    iid pair), which need not be leaves; plain_weight as given to the row. Backpropagates to `logps` and no further:
    the model is not touched, and its graph is kept.
    """
    d_a, d_b, d_row = (_coefficients(value, logps) for value in (losses.a, losses.b, row_loss))
    p_a = p_a.detach()
    weight = plain_weight.detach() if isinstance(plain_weight, Tensor) else plain_weight
    plain = weight * (p_a * d_a.abs() + (1.0 - p_a) * d_b.abs())
    extra = (d_row - weight * (p_a * d_a + (1.0 - p_a) * d_b)).abs()
    return TermScales(plain.sum(dim=0), extra.sum(dim=0))


def _mix(share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return share * first + (1.0 - share) * second


def _coefficients(per_pair: Tensor, logps: Sequence[Tensor]) -> Tensor:
    """d per_pair[i] / d logps[k][i], shape [K, B]; rows are independent, so one backward pass gives all."""
    gradients = torch.autograd.grad(
        per_pair.sum(), list(logps), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.stack(gradients)

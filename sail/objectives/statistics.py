"""What a loss needs to know of the whole global batch: numbers computed before it, from detached log-probs.

A statistic is a function (responses of the global batch, **the loss's parameters it asks for) -> BatchStatistic. The
loss takes the value as an argument and stays a function of its own rows.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sail.core.errors import UserError
from sail.objectives import parameters
from sail.objectives.responses import Responses, log_ratio, targets_of


class BatchStatistic(NamedTuple):
    value: Tensor
    """0-d, detached"""
    metrics: dict[str, float]
    """what is logged of it"""


class StatisticRow(NamedTuple):
    """A statistic, declared."""

    function: Callable[..., BatchStatistic]
    of: Literal["rows", "mismatched"]
    """the batch's own responses (their labels alone: no forward pass), or the mismatched ones, under the policy"""


def rwr_log_z(
    responses: Responses, *, temperature: float = 1.0, cap: float = 20.0, min_effective: float = 0.1
) -> BatchStatistic:
    """log mean exp(r / temperature) over the global batch, and the effective share of its rows.

    (sum w)^2 / (n sum w^2) with capped weights w (Kish 1965), never below 1/n; below min_effective, in [0, 1], a step
    would learn from next to no rows and the run stops with a UserError.
    """
    parameters.positive(temperature=temperature, cap=cap)
    parameters.share(min_effective=min_effective)
    scaled = targets_of(responses).detach() / temperature
    log_z = torch.logsumexp(scaled, 0) - math.log(len(scaled))
    weights = torch.exp(scaled - log_z).clamp_max(cap)
    share = float(weights.sum().square() / weights.square().sum() / len(weights))
    if not share >= min_effective:  # a score that is no number stops here too
        raise UserError(
            f"reward weights leave {100 * share:.1f} % of the batch effective, below {100 * min_effective:g} %",
            where="loss.temperature", cure="Raise it, normalise the scores, lower loss.cap or loss.min_effective",
        )  # fmt: skip
    return BatchStatistic(log_z, {"objective/effective_share": share})


def kto_z0(mismatched: Responses) -> BatchStatistic:
    """max(0, mean of log pi(y'|x) - log pi_ref(y'|x)) over responses y' of other prompts, 0-d, nats.

    A biased but stable estimate of KL(pi || pi_ref) (arXiv 2402.01306, section 4.1); no gradient flows through it.
    """
    z0 = log_ratio(mismatched).detach().mean().clamp_min(0.0)
    return BatchStatistic(z0, {"objective/kto_z0": float(z0)})


def accepted(function: Callable[..., Any], params: Mapping[str, float]) -> dict[str, float]:
    """The parameters that this function takes."""
    known = keyword_defaults(function)
    return {name: value for name, value in params.items() if name in known}


def keyword_defaults(function: Callable[..., Any]) -> dict[str, float]:
    """A function's keyword-only arguments and their defaults."""
    signature = inspect.signature(function).parameters.values()
    return {arg.name: arg.default for arg in signature if arg.kind is inspect.Parameter.KEYWORD_ONLY}

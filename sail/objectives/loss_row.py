"""One row of the loss registry: a function and what is true of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sail.core.errors import UserError
from sail.objectives.responses import Responses, Rollout, Tokens, Trajectory
from sail.objectives.statistics import StatisticRow, accepted, keyword_defaults

Unit = Literal["pair", "response", "group"]
Target = Literal["", "thumbs", "score", "win_rate"]
Samples = Literal["", "policy", "reference", "others"]
Status = Literal["exact", "heuristic", "reconstructed"]


@dataclass(frozen=True)
class LossRow:
    """A loss, declared.

    Example: LossRow(dpo, unit="pair", needs=("reference",), source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7",
    status="exact", link=dpo_link).
    """

    function: Callable[..., Tensor]
    """(chosen, rejected, **params) -> [B] for a pair, (responses, **params) -> [B] for a response or a group; with a
    statistic or a critic (responses, its value, **params)."""
    unit: Unit
    """pair; response: one of them per row; group: all responses of a prompt in one row, whose loss is their mean"""
    needs: tuple[str, ...]
    """fields of Responses it reads besides logps: "reference" (ref_logps), "num_tokens", "features" (feature_distances,
    which components.sae must make possible)."""
    source: str
    """author year, arXiv, equation"""
    status: Status
    """exact: the published formula, and for a pair loss KL-regularised, summed and referenced, so that it may claim
    the reward-policy equivalence; heuristic: the published formula, without that claim; reconstructed: from memory."""
    link: Callable[..., Tensor] | None = None
    """(a, b, **the same params) -> log q(a beats b), [B]; None refuses `labels: policy`."""
    hard_only: str = ""
    """why a label between 0 and 1 has no meaning here; empty where p l(a, b) + (1 - p) l(b, a) is the loss meant."""
    elsewhere: str = ""
    """what else the name stands for in other libraries, for those who come from there."""

    target: Target = ""
    """what labels must say of every response; empty where the loss compares pairs or reads no label"""
    samples: Samples = ""
    """whose draws the expectation is over that has this gradient. policy: the policy's own, each at its probability;
    reference: the reference's; others: anybody's but the policy's, on whose draws it is zero; empty: anybody's"""
    statistic: StatisticRow | None = None
    """what it needs to know of the global batch"""
    critic: Callable[..., Tensor] | None = None
    """(responses, values [T], **params) -> [B]: the loss of the value network, which components.value must name"""
    rollouts: Callable[..., list[Rollout]] | None = None
    """(trajectories, **params) -> what a round estimates once, before its update, at the policy that drew the samples;
    the loss and its critic find it in Responses.tokens.rollout"""

    @property
    def soft_labels(self) -> bool:
        """Labels may lie between 0 and 1; False refuses `mode: soft`."""
        return not self.hard_only

    @property
    def params(self) -> dict[str, float]:
        """Its parameters and their defaults: keyword-only arguments of the function and of what goes with it."""
        statistic = None if self.statistic is None else self.statistic.function
        known: dict[str, float] = {}
        for function in (self.function, statistic, self.critic, self.rollouts):
            known |= {} if function is None else keyword_defaults(function)
        return known

    def loss(self, *responses: Responses | Tensor, **params: float) -> Tensor:
        """The function with those of the parameters that are its own."""
        return self.function(*responses, **accepted(self.function, params))

    def check(self, **params: float) -> None:
        """UserError for a parameter out of its range or not its own; computes the loss of one response, or of two."""
        for name in sorted(set(params) - set(self.params)):
            known = ", ".join(self.params) or "none"
            raise UserError(f"no parameter {name!r}", where=f"loss.{name}", cure=f"Its parameters: {known}")
        one = torch.ones(1, dtype=torch.float64)
        tokens = Tokens(-one, torch.zeros(1, dtype=torch.int64), Rollout(-one, one, one, one))
        response = Responses(-one, -one, one, targets=one, group=tokens.row, tokens=tokens, feature_distances=one)
        given: list[Responses | Tensor] = [response] if self.unit == "pair" else []
        if self.statistic is not None:
            given.append(self.statistic.function(response, **accepted(self.statistic.function, params)).value)
        if self.critic is not None:
            given.append(one)
            self.critic(response, *given, **accepted(self.critic, params))
        if self.rollouts is not None:
            self.rollouts([Trajectory(-one, -one, one, 1.0)], **accepted(self.rollouts, params))
        self.loss(response, *given, **params)

    def baseline_start(self, **params: float) -> float:
        """b of the first optimizer step: the loss of responses that nothing tells apart, policy == reference.

        A constant known before any pair is seen, so it biases nothing: log 2 for dpo, 1/(4 beta^2) for ipo, delta
        for slic. (All log-probs are -1 over one token, rather than 0, where losses with odds have a pole.)
        Only losses of pairs have a score term, and so a baseline.
        """
        one = torch.ones(1, dtype=torch.float64)
        response = Responses(logps=-one, ref_logps=-one, num_tokens=one, feature_distances=0.0 * one)
        return float(self.function(response, response, **params))

    def plain_pull(self, num_tokens: float, **params: float) -> float:
        """|d loss / d log pi| where baseline_start is taken, of the side that is pulled harder; beta / 2 for dpo.

        A loss that averages over tokens pulls a response of num_tokens tokens num_tokens times less hard.
        """
        length = torch.full((1,), num_tokens, dtype=torch.float64)
        sides = [(-length).requires_grad_(), (-length).requires_grad_()]
        a, b = (Responses(logps, -length, length, feature_distances=0.0 * length) for logps in sides)
        pulls = torch.autograd.grad(self.function(a, b, **params).sum(), sides)
        return max(float(pull.abs()) for pull in pulls)

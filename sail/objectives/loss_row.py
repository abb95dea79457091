"""One row of the loss registry: a function and what is true of it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sail.objectives.responses import Responses

Unit = Literal["pair", "response"]
Status = Literal["exact", "heuristic", "reconstructed"]


@dataclass(frozen=True)
class LossRow:
    """A loss, declared.

    Example: LossRow(dpo, unit="pair", needs=("reference",), source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7",
    status="exact", link=dpo_link).
    """

    function: Callable[..., Tensor]
    """(chosen, rejected, **params) -> [B] for a pair, (responses, **params) -> [B] for a response."""
    unit: Unit
    needs: tuple[str, ...]
    """fields of Responses it reads besides logps: "reference" (ref_logps), "num_tokens"."""
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

    @property
    def soft_labels(self) -> bool:
        """Labels may lie between 0 and 1; False refuses `mode: soft`."""
        return not self.hard_only

    @property
    def params(self) -> dict[str, float]:
        """The loss's parameters and their defaults: its keyword-only arguments."""
        signature = inspect.signature(self.function).parameters.values()
        return {arg.name: arg.default for arg in signature if arg.kind is inspect.Parameter.KEYWORD_ONLY}

    def baseline_start(self, **params: float) -> float:
        """b of the first optimizer step: the loss of responses that nothing tells apart, policy == reference.

        A constant known before any pair is seen, so it biases nothing: log 2 for dpo, 1/(4 beta^2) for ipo, delta
        for slic. (All log-probs are -1 over one token, rather than 0, where losses with odds have a pole.)
        """
        one = torch.ones(1, dtype=torch.float64)
        response = Responses(logps=-one, ref_logps=-one, num_tokens=one)
        sides = (response, response) if self.unit == "pair" else (response,)
        return float(self.function(*sides, **params))

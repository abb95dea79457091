"""What an objective sees of a response: three numbers."""

from typing import NamedTuple

from torch import Tensor


class Responses(NamedTuple):
    """B responses to B prompts: one side of a batch of pairs, or a batch of single responses.

    Example, two responses of 3 and 5 tokens under a policy that equals its reference:
    Responses(logps=[-4.2, -9.0], ref_logps=[-4.2, -9.0], num_tokens=[3.0, 5.0]).
    """

    logps: Tensor
    """[B] float64, nats, <= 0: sum over response tokens of log pi_theta(token | before); EOS counted when it
    was emitted, never when the response was cut. Carries the gradient."""
    ref_logps: Tensor
    """[B] float64, nats, <= 0: the same sum under the reference policy; detached."""
    num_tokens: Tensor
    """[B] float64, >= 0: the number of tokens in that sum."""


def log_ratio(responses: Responses) -> Tensor:
    """s = log pi_theta(y|x) - log pi_ref(y|x), shape [B], nats."""
    return responses.logps - responses.ref_logps


def log_ratio_gap(a: Responses, b: Responses) -> Tensor:
    """h = s_a - s_b, shape [B], nats: the gap of log-ratios WITHOUT beta."""
    return log_ratio(a) - log_ratio(b)


def mean_logps(responses: Responses) -> Tensor:
    """log pi(y|x) / |y|, shape [B], nats per token, <= 0; 0 for a response without tokens."""
    return responses.logps / responses.num_tokens.clamp_min(1.0)


def mean_log_ratio_gap(a: Responses, b: Responses) -> Tensor:
    """s_a / |a| - s_b / |b|, shape [B], nats per token; a response without tokens counts 0."""
    return log_ratio(a) / a.num_tokens.clamp_min(1.0) - log_ratio(b) / b.num_tokens.clamp_min(1.0)

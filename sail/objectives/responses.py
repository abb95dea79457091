"""What an objective sees of a response: a few numbers."""

from typing import NamedTuple

import torch
from torch import Tensor


class Trajectory(NamedTuple):
    """One response of T tokens as the policy that drew it saw it: what advantages are estimated from."""

    logps: Tensor
    """[T] float64, nats, <= 0: log pi_old(token | before)"""
    ref_logps: Tensor
    """[T] float64, nats, <= 0: the same under the reference"""
    values: Tensor
    """[T] float64: V(x, y_<k), in the unit of the reward"""
    reward: float
    """of the whole response"""


class Rollout(NamedTuple):
    """What a round estimates once, at the policy that drew its samples; over T response tokens, detached."""

    old_logps: Tensor
    """[T] float64, nats, <= 0: log pi_old(token | before)"""
    values: Tensor
    """[T] float64: the value network of that time"""
    advantages: Tensor
    """[T] float64: how much better than its value a token turned out, whitened if the loss says so"""
    returns: Tensor
    """[T] float64: what the value network should have said"""


class Tokens(NamedTuple):
    """The T response tokens of a batch, for the few losses that look at them one by one."""

    logps: Tensor
    """[T] float64, nats, <= 0: log pi_theta(token | before). Carries the gradient."""
    row: Tensor
    """[T] int64: the response a token belongs to; the tokens of a response after one another."""
    rollout: Rollout | None = None
    """for losses that learn from a round's estimates"""


class Responses(NamedTuple):
    """B responses: one side of a batch of pairs, a batch of single responses, or whole groups after one another.

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
    targets: Tensor | None = None
    """[B] float64: what the labels say of each response: its score (normalised as the route asks), 1 or 0 for a thumb
    up or down, or its win rate. None where the loss reads no label."""
    group: Tensor | None = None
    """[B] int64: the prompt of each response, counted from 0; for losses whose unit is a group."""
    feature_distances: Tensor | None = None
    """[B] float64, >= 0: M, how far features moved from the reference's; for losses of features. Carries a gradient."""
    tokens: Tokens | None = None
    """the same log-probs token by token; for losses with per-token terms."""


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


def group_means(values: Tensor, responses: Responses) -> Tensor:
    """The mean over each response's group, its own value included, shape [B]."""
    sizes = _group_sums(torch.ones_like(values), responses)
    return _group_sums(values, responses) / sizes


def leave_one_out_means(values: Tensor, responses: Responses) -> Tensor:
    """The mean over the OTHER responses of the group, shape [B]; a response alone in its group gets its own value.

    It does not depend on the response it is subtracted from, so it costs a score-function estimator no bias
    (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, section 2.3).
    """
    others = _group_sums(torch.ones_like(values), responses) - 1.0
    rest = _group_sums(values, responses) - values
    return torch.where(others > 0, rest / others.clamp_min(1.0), values)


def group_sizes(responses: Responses) -> Tensor:
    """The number of responses in each response's group, shape [B]."""
    return _group_sums(torch.ones_like(responses.logps), responses)


def _group_sums(values: Tensor, responses: Responses) -> Tensor:
    group = responses.group
    assert group is not None, "a loss whose unit is a group needs groups"
    sums = values.new_zeros(int(group.max()) + 1 if len(group) else 0).index_add(0, group, values)
    return sums[group]


def tokens_of(responses: Responses) -> Tokens:
    """The T tokens; only losses with per-token terms ask for them."""
    assert responses.tokens is not None, "a loss with per-token terms needs the tokens"
    return responses.tokens


def row_sums(per_token: Tensor, responses: Responses) -> Tensor:
    """[T] -> [B]: summed over the tokens of each response."""
    sums = torch.zeros(len(responses.logps), dtype=per_token.dtype, device=per_token.device)
    return sums.index_add(0, tokens_of(responses).row, per_token)


def targets_of(responses: Responses) -> Tensor:
    """The labels, [B]; only losses that declare a target ask for them."""
    assert responses.targets is not None, "the route's rows carry no labels"
    return responses.targets

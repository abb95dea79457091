"""The label table: what a pair costs, by who labels it and how.

The pair is (a, b); l_y is the loss if y wins, q_y the policy's own preference at the CURRENT parameters, p_y the
label probability, S the sum of log pi over the responses that the policy itself drew for this pair, b a baseline,
w an importance weight, c the SAIL coefficient, sg stop-gradient.

    labels_by_others      sum_y p_y l_y     + c w sg(sum_y p_y l_y - b) S
    fresh_soft            sum_y sg(q_y) l_y + c sum_y q_y sg(l_y - b)  + c w sg(sum_y q_y l_y - b) S
    fresh_sampled         l_y               + c sg(l_y - b) log q_y    + c w sg(l_y - b) S      y = a iff u < q_a
    fresh_hard            l_y               + c w sg(l_y - b) S                                 y = argmax q

Losses are minimised and unreduced, [B]; their autograd gradient is the estimator. With c = 1 its expectation is
the exact gradient of E_{a,b ~ pi}[sum_y (label probability of y) l_y]: SAIL-PR for labels by others, SAIL-PP for
fresh labels, SAIL-DP for fresh labels on dataset responses, where S = 0 (Ding et al. 2024, arXiv 2406.15567,
sections 3 and 4). The label term stands in the log-derivative form sum_y sg(q_y) sg(l_y - b) log q_y throughout:
the same gradient as sum_y q_y sg(l_y - b), and no second form to keep right. Its value carries no meaning.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class PairLosses(NamedTuple):
    """Both outcomes of B pairs: a = the loss if a wins, b = the loss if b wins; each [B], with gradient."""

    a: Tensor
    b: Tensor


class PolicyPreference(NamedTuple):
    """The policy's own label of B pairs at the current parameters."""

    log_q_a: Tensor
    """[B], nats, <= 0: log q(a beats b) by the loss's link, with gradient."""
    log_q_b: Tensor
    """[B], nats, <= 0: log q(b beats a), with gradient."""
    uniforms: Tensor
    """[B] in [0, 1): drawn once at labeling and stored with the pair, so that losses draw nothing."""


class OnlineTerms(NamedTuple):
    """What the extra terms of B pairs need besides the losses. The default is c = 0: the plain term alone."""

    score_logps: Tensor | float = 0.0
    """S, [B], nats: sum of log pi over every response that influenced the pair AND was drawn from the policy (both
    of an iid pair, all n behind a best-against-worst pair, 0 for dataset responses), with gradient."""
    sail_coef: float = 0.0
    """c >= 0; 1 is the exact gradient of the SAIL objective, 0 leaves the sampling distribution out."""
    baseline: float | Tensor = 0.0
    """b, 0-d: any number that does not depend on the pairs of this optimizer step (baseline.py)."""
    weight: float | Tensor = 1.0
    """w, [B], >= 0: importance weight of the score term (importance.py)."""
    plain_weight: float | Tensor = 1.0
    """[B], >= 0: weight of every other term; equal to w for the exact off-policy gradient."""


def soft_labels(preference: PolicyPreference) -> Tensor:
    """p_a = sg(q_a), shape [B]: the expectation over the policy's label (Rao-Blackwell)."""
    return preference.log_q_a.detach().exp()


def sampled_labels(preference: PolicyPreference) -> Tensor:
    """p_a = 1[u < q_a], shape [B], 0 or 1: the paper's label, drawn from q by the pair's stored uniform."""
    return (preference.uniforms < soft_labels(preference)).to(preference.log_q_a.dtype)


def hard_labels(preference: PolicyPreference) -> Tensor:
    """p_a = 1[q_a > q_b], shape [B], 0 or 1; a tie (every pair while policy == reference) goes by u < 1/2."""
    log_q_a, log_q_b = preference.log_q_a.detach(), preference.log_q_b.detach()
    won = torch.where(log_q_a == log_q_b, preference.uniforms < 0.5, log_q_a > log_q_b)
    return won.to(log_q_a.dtype)


def labels_by_others(losses: PairLosses, p_a: Tensor, online: OnlineTerms) -> Tensor:
    """Loss [B] of pairs whose label is fixed while the policy moves: dataset, reward model, judge, frozen policy.

    p_a in [0, 1], [B]: P(a beats b) by the labeler; a hard or sampled label is p_a in {0, 1}.
    c = 0 is online DPO, with p_a = 1 the loss of a itself bit for bit.
    """
    return _row(losses, p_a, online)


def fresh_soft(losses: PairLosses, preference: PolicyPreference, online: OnlineTerms) -> Tensor:
    """Loss [B] under the expectation of the policy's own label. At c = 0 the gradient of dpo is exactly zero."""
    return _row(losses, soft_labels(preference), online, preference)


def fresh_sampled(losses: PairLosses, preference: PolicyPreference, online: OnlineTerms) -> Tensor:
    """Loss [B] under a label drawn from the policy's preference (the paper). At c = 0 it is noise of mean zero."""
    return _row(losses, sampled_labels(preference), online, preference)


def fresh_hard(losses: PairLosses, preference: PolicyPreference, online: OnlineTerms) -> Tensor:
    """Loss [B] under the policy's likelier label: no draw, hence no label term. It amplifies its own opinion."""
    return _row(losses, hard_labels(preference), online)


FRESH_ROWS: dict[str, Callable[[PairLosses, PolicyPreference, OnlineTerms], Tensor]] = {
    "soft": fresh_soft,
    "sampled": fresh_sampled,
    "hard": fresh_hard,
}
FRESH_LABELS: dict[str, Callable[[PolicyPreference], Tensor]] = {
    "soft": soft_labels,
    "sampled": sampled_labels,
    "hard": hard_labels,
}


def pair_value(losses: PairLosses, p_a: Tensor) -> Tensor:
    """sg(sum_y p_y l_y), shape [B]: what the score term compares with the baseline, and the baseline averages."""
    return _expected(losses, p_a).detach()


def _expected(losses: PairLosses, p_a: Tensor) -> Tensor:
    return p_a.detach() * losses.a + (1.0 - p_a.detach()) * losses.b


def _row(losses: PairLosses, p_a: Tensor, online: OnlineTerms, drawn_from: PolicyPreference | None = None) -> Tensor:
    loss = _expected(losses, p_a)
    if online.sail_coef == 0.0:
        return _constant(online.plain_weight) * loss
    advantage = pair_value(losses, p_a) - _constant(online.baseline)
    score_term = _constant(online.weight) * advantage * online.score_logps
    if drawn_from is not None:
        loss = loss + online.sail_coef * _label_term(losses, p_a, _constant(online.baseline), drawn_from)
    return _constant(online.plain_weight) * loss + online.sail_coef * score_term


def _label_term(losses: PairLosses, p_a: Tensor, baseline: float | Tensor, preference: PolicyPreference) -> Tensor:
    advantage_a, advantage_b = losses.a.detach() - baseline, losses.b.detach() - baseline
    return p_a * advantage_a * preference.log_q_a + (1.0 - p_a) * advantage_b * preference.log_q_b


def _constant(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else value

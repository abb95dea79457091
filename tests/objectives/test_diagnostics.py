"""Metrics of a batch of pairs, by hand."""

import math

import pytest
import torch

from sail.objectives.diagnostics import pair_diagnostics, term_scales
from sail.objectives.links import dpo_link
from sail.objectives.online import OnlineTerms, PairLosses, PolicyPreference, fresh_soft, labels_by_others, soft_labels
from sail.objectives.pairwise import dpo
from sail.objectives.responses import Responses


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def responses(logps: torch.Tensor, ref_logps: torch.Tensor) -> Responses:
    return Responses(logps, ref_logps, torch.ones_like(ref_logps))


def test_rewards_follow_the_label_and_a_tie_takes_half_of_each():
    a = responses(tensor(-4.0, -4.0, -4.0).requires_grad_(), tensor(-6.0, -6.0, -6.0))
    b = responses(tensor(-3.0, -3.0, -3.0), tensor(-2.0, -2.0, -2.0))
    got = pair_diagnostics(a, b, tensor(0.9, 0.2, 0.5), beta=0.5)
    assert {key: value.tolist() for key, value in got.items()} == {
        "rewards/chosen": [1.0, -0.5, 0.25],
        "rewards/rejected": [-0.5, 1.0, 0.25],
        "rewards/margins": [1.5, -1.5, 0.0],
        "rewards/accuracies": [1.0, 0.0, 0.5],
        "logps/chosen": [-4.0, -3.0, -3.5],
        "logps/rejected": [-3.0, -4.0, -3.5],
    }
    assert not any(value.requires_grad for value in got.values())


def test_an_equal_margin_is_no_success():
    side = responses(tensor(-4.0), tensor(-4.0))
    assert pair_diagnostics(side, side, tensor(1.0))["rewards/accuracies"].tolist() == [0.0]


def at_the_reference(beta: float) -> tuple[list[torch.Tensor], PairLosses, PolicyPreference]:
    theta = tensor(-5.0, -7.0).requires_grad_()
    logps = [theta * 1.0, theta * 1.0 - 2.0]  # not leaves, as in a model
    a, b = (responses(side, side.detach()) for side in logps)
    losses = PairLosses(dpo(a, b, beta=beta), dpo(b, a, beta=beta))
    return logps, losses, PolicyPreference(dpo_link(a, b, beta=beta), dpo_link(b, a, beta=beta), tensor(0.3, 0.3))


def test_at_the_reference_the_score_pull_is_c_ln2_against_half_beta():
    """beta .1 and c .2 without a baseline give a ratio of 2.8."""
    logps, losses, _ = at_the_reference(0.1)
    p_a = tensor(1.0, 0.0)
    row = labels_by_others(losses, p_a, OnlineTerms(logps[0] + logps[1], 0.2))
    scales = term_scales(row, losses, p_a, logps)
    torch.testing.assert_close(scales.plain, tensor(0.1, 0.1))
    torch.testing.assert_close(scales.extra, torch.full((2,), 2 * 0.2 * math.log(2.0), dtype=torch.float64))
    assert float(scales.extra.sum() / scales.plain.sum()) == pytest.approx(2.77, abs=0.01)


def test_the_plain_pull_under_the_policys_own_soft_label_is_that_of_a_drawn_one():
    logps, losses, preference = at_the_reference(0.1)
    row = fresh_soft(losses, preference, OnlineTerms(logps[0] + logps[1], 0.2, baseline=math.log(2.0)))
    scales = term_scales(row, losses, soft_labels(preference), logps)
    torch.testing.assert_close(scales.plain, tensor(0.1, 0.1))
    torch.testing.assert_close(scales.extra, tensor(0.0, 0.0), rtol=0, atol=1e-15)


def test_weights_scale_each_term_by_its_own_and_c_zero_has_no_extra():
    logps, losses, _ = at_the_reference(0.1)
    p_a, weight = tensor(1.0, 1.0), tensor(3.0, 0.5)
    S = logps[0] + logps[1]
    row = labels_by_others(losses, p_a, OnlineTerms(S, 0.2, 0.0, weight, weight))
    scales = term_scales(row, losses, p_a, logps, plain_weight=weight)
    torch.testing.assert_close(scales.plain, 0.1 * weight)
    torch.testing.assert_close(scales.extra, 0.4 * math.log(2.0) * weight)
    bare = term_scales(labels_by_others(losses, p_a, OnlineTerms(S)), losses, p_a, logps)
    assert bare.extra.tolist() == [0.0, 0.0]
    losses.a.sum().backward()  # the graph is still there


def test_a_loss_without_a_reference_has_log_probs_for_rewards():
    """SimPO, ORPO and SLiC have nothing to take the ratio to: no nan reaches the log."""
    nothing = torch.full((2,), float("nan"), dtype=torch.float64)
    a, b = (Responses(tensor(*logps), nothing, tensor(3.0, 3.0)) for logps in ((-4.0, -9.0), (-6.0, -5.0)))
    logged = pair_diagnostics(a, b, tensor(1.0, 1.0), beta=0.5)
    assert logged["rewards/margins"].tolist() == [1.0, -2.0]
    assert logged["rewards/accuracies"].tolist() == [1.0, 0.0]

"""Losses whose gradient is that of an expectation over the policy's own samples, against the exact gradient."""

import pytest
import torch

from sail.objectives.regression import rloo
from sail.objectives.responses import log_ratio
from sail.objectives.streams import kl_policy_ref

from .populations import every_group, gradient, kl, make_toy

TOY = make_toy()
THETA = TOY.theta.clone().requires_grad_()
LOGPS = THETA.log_softmax(1)
KL_GRADIENT = gradient(kl(LOGPS, TOY.ref, TOY.prompt_probs), THETA)


def groups_of(n: int):
    return every_group(n, LOGPS, TOY.ref, LOGPS, TOY.prompt_probs, TOY.rewards)


@pytest.mark.parametrize("n", [2, 3])
def test_the_expected_gradient_of_kl_policy_ref_is_that_of_the_divergence(n):
    responses, probs = groups_of(n)
    got = gradient((probs * kl_policy_ref(responses)).sum(), THETA)
    torch.testing.assert_close(got, KL_GRADIENT, rtol=0, atol=1e-14)
    assert KL_GRADIENT.abs().max() > 0.1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_mean_log_ratio_differentiated_directly_moves_nothing_in_expectation(n):
    """E_pi[grad log pi] = 0: the mistake that looks like a KL term, has its value and none of its gradient."""
    responses, probs = groups_of(n)
    naive = (probs * log_ratio(responses)).sum()
    torch.testing.assert_close(naive, kl(LOGPS, TOY.ref, TOY.prompt_probs))
    assert gradient(naive, THETA).abs().max() < 1e-15


@pytest.mark.parametrize("beta", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("n", [2, 3])
def test_the_expected_gradient_of_rloo_is_that_of_the_regularised_reward(n, beta):
    responses, probs = groups_of(n)
    expected_reward = (TOY.prompt_probs[:, None] * LOGPS.exp() * TOY.rewards).sum()
    want = gradient(expected_reward - beta * kl(LOGPS, TOY.ref, TOY.prompt_probs), THETA)
    got = gradient((probs * rloo(responses, beta=beta)).sum(), THETA)
    torch.testing.assert_close(got, -want, rtol=0, atol=1e-14)


def test_a_baseline_that_counts_the_response_itself_shrinks_the_gradient():
    """The group's own mean in the place of the others' loses 1/n of it: why b leaves the response out."""
    responses, probs = groups_of(3)
    ratios = log_ratio(responses).detach()
    mean = ratios.unflatten(0, (-1, 3)).mean(1).repeat_interleave(3)
    got = gradient((probs * (ratios - mean) * responses.logps).sum(), THETA)
    torch.testing.assert_close(got, KL_GRADIENT * 2 / 3, rtol=0, atol=1e-14)


def test_a_response_alone_with_its_prompt_pulls_nowhere():
    responses, _ = groups_of(1)
    for loss in (rloo, kl_policy_ref):
        assert gradient(loss(responses).sum(), THETA).abs().max() == 0.0

"""Which way each regularizer pulls, by exact sums over tabular policies."""

import pytest
import torch

from sail.objectives import LOSSES, Responses
from sail.objectives.links import dpo_link
from sail.objectives.online import OnlineTerms, PairLosses, labels_by_others
from sail.objectives.pairwise import dpo
from sail.objectives.streams import abs_margin, kl_ref_policy, linear, optimism

from .by_hand import CHOSEN, REJECTED, tensor
from .contract import random_case
from .populations import every_response, gradient, kl, make_toy

TOY = make_toy()
PROMPTS = TOY.prompt_probs[:, None]
THETA = TOY.theta.clone().requires_grad_()
LOGPS = THETA.log_softmax(1)
A, B = random_case(LOSSES["linear"]).sides


def mass(draws: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    """E over responses drawn by `draws` of their log-prob."""
    return (PROMPTS * draws.exp() * logps).sum()


def expected(loss, draws: torch.Tensor, **params: float) -> torch.Tensor:
    return ((PROMPTS * draws.exp()).flatten() * loss(every_response(LOGPS, TOY.ref), **params)).sum()


def change(value: torch.Tensor, draws: torch.Tensor) -> float:
    """How a step downhill on `value` changes the mass of responses drawn by `draws`, to first order."""
    return float(-(gradient(value, THETA) * gradient(mass(draws, LOGPS), THETA)).sum())


def test_kl_ref_policy_is_the_divergence_from_the_reference_in_value_and_gradient():
    want = kl(TOY.ref, LOGPS, TOY.prompt_probs)
    got = expected(kl_ref_policy, TOY.ref)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient(got, THETA), gradient(want, THETA))
    theta = TOY.ref.clone().requires_grad_()
    at_ref = (PROMPTS * TOY.ref.exp()).flatten() * kl_ref_policy(every_response(theta.log_softmax(1), TOY.ref))
    assert gradient(at_ref.sum(), theta).abs().max() < 1e-15


@pytest.mark.parametrize(("sign", "direction"), [(1.0, -1), (-1.0, 1)])
def test_optimism_pushes_the_calibration_policys_responses_down_and_pessimism_pulls_them_up(sign, direction):
    for calibration in (TOY.ref, TOY.data):
        value = expected(optimism, calibration, sign=sign)
        assert direction * change(value, calibration) > 1e-3
    torch.testing.assert_close(expected(optimism, TOY.ref, sign=sign), -sign * kl(TOY.ref, LOGPS, TOY.prompt_probs))


def test_the_optimism_term_is_the_value_of_the_best_policy_for_a_calibrated_reward():
    """VPO: with E_cal r = 0, max_pi E r - beta KL(pi || ref) = -beta E_cal[log pi_r - log ref]."""
    beta, cal = 0.7, TOY.data
    reward = TOY.rewards - (cal.exp() * TOY.rewards).sum(1, keepdim=True)
    best = (TOY.ref + reward / beta).log_softmax(1)
    value = (PROMPTS * best.exp() * reward).sum() - beta * kl(best, TOY.ref, TOY.prompt_probs)
    term = ((PROMPTS * cal.exp()).flatten() * optimism(every_response(best, TOY.ref))).sum()
    torch.testing.assert_close(value, -beta * term)


def test_linear_raises_the_chosen_by_what_it_lowers_the_rejected_and_mirrors():
    assert torch.equal(linear(A, B, beta=0.3), -linear(B, A, beta=0.3))
    near = [side._replace(logps=side.ref_logps + 1e-4 * side.logps) for side in (A, B)]
    twice = 2.0 * (dpo(*near, beta=0.3) - torch.log(tensor(2.0)))
    torch.testing.assert_close(linear(*near, beta=0.3), twice, rtol=1e-3, atol=0)


def test_spacs_critic_is_linear_over_pairs_of_the_reference_and_the_policy():
    """E over y' ~ ref (chosen) and y ~ pi_t (rejected): beta (E_pi_t s - E_ref s), s relative to pi_t."""
    current, beta = TOY.data, 0.3  # pi_t, which is the reference of the log-ratios
    x, first, second = (t.flatten() for t in torch.meshgrid(*map(torch.arange, (2, 3, 3)), indexing="ij"))
    chosen, rejected = (Responses(LOGPS[x, y], current[x, y], 0.0 * current[x, y]) for y in (first, second))
    weights = TOY.prompt_probs[x] * TOY.ref[x, first].exp() * current[x, second].exp()
    value = (weights * linear(chosen, rejected, beta=beta)).sum()
    ratios = LOGPS - current
    torch.testing.assert_close(value, beta * (mass(current, ratios) - mass(TOY.ref, ratios)))
    assert change(value, TOY.ref) > 1e-3


def test_abs_margin_does_not_look_at_the_label_and_pulls_to_indifference():
    torch.testing.assert_close(abs_margin(A, B, beta=0.3), abs_margin(B, A, beta=0.3), rtol=0, atol=0)
    losses = PairLosses(abs_margin(A, B), abs_margin(B, A))
    for p in (0.0, 0.3, 1.0):
        torch.testing.assert_close(labels_by_others(losses, torch.full_like(losses.a, p), OnlineTerms()), losses.a)
    log_q = dpo_link(A, B, beta=0.1), dpo_link(B, A, beta=0.1)
    torch.testing.assert_close(losses.a, (log_q[0] - log_q[1]).abs())
    logps = CHOSEN.logps.clone().requires_grad_()
    pulls = torch.autograd.grad(abs_margin(CHOSEN._replace(logps=logps), REJECTED, beta=0.5).sum(), logps)[0]
    assert pulls.tolist() == [0.5, 0.0, -0.5]  # gaps 3, 0, -3


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_a_soft_label_scales_linear_by_how_sure_it_is(p):
    losses = PairLosses(linear(A, B), linear(B, A))
    mixed = labels_by_others(losses, torch.full_like(losses.a, p), OnlineTerms())
    torch.testing.assert_close(mixed, (2 * p - 1) * linear(A, B))

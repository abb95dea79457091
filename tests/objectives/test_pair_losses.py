"""What sets each pair loss apart from its neighbours, and the parameters it refuses."""

import math

import pytest
import torch

from sail.objectives import Responses
from sail.objectives.averaged import orpo, simpo
from sail.objectives.pairwise import cdpo, dpo, ipo, rdpo, sppo_hard
from sail.objectives.pairwise_variants import discopop, dpo_pro, exo

from .by_hand import CHOSEN, REJECTED, nls, tensor
from .test_losses import random_sides


def at_gap(*gaps: float) -> tuple[Responses, Responses]:
    """Pairs with the given h, split unevenly between the sides."""
    logps, ones = tensor(*gaps), torch.ones(len(gaps), dtype=torch.float64)
    return Responses(0.25 * logps, 0 * ones, ones), Responses(-0.75 * logps, 0 * ones, ones)


def slope(function, gap: float, **params: float) -> float:
    logps = tensor(gap).requires_grad_()
    zero, one = tensor(0.0), tensor(1.0)
    value = function(Responses(logps, zero, one), Responses(zero, zero, one), **params)
    return float(torch.autograd.grad(value, logps)[0])


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.4])
def test_cdpo_is_dpo_with_a_soft_label_and_comes_to_rest_at_its_logit(epsilon):
    a, b = random_sides("cdpo")
    soft = (1 - epsilon) * dpo(a, b, beta=0.3) + epsilon * dpo(b, a, beta=0.3)
    torch.testing.assert_close(cdpo(a, b, beta=0.3, epsilon=epsilon), soft)
    assert not torch.allclose(soft, dpo(a, b, beta=0.3))
    rest = math.log((1 - epsilon) / epsilon) / 0.3
    assert abs(slope(cdpo, rest, beta=0.3, epsilon=epsilon)) < 1e-15
    assert slope(cdpo, rest - 1, beta=0.3, epsilon=epsilon) < 0 < slope(cdpo, rest + 1, beta=0.3, epsilon=epsilon)
    assert slope(dpo, rest + 1, beta=0.3) < 0


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4])
def test_the_mean_of_rdpo_over_flipped_labels_is_dpo_and_that_of_cdpo_is_not(epsilon):
    a, b = random_sides("rdpo")

    def mean_over_flips(loss):
        kept, flipped = loss(a, b, beta=0.3, epsilon=epsilon), loss(b, a, beta=0.3, epsilon=epsilon)
        return (1 - epsilon) * kept + epsilon * flipped

    torch.testing.assert_close(mean_over_flips(rdpo), dpo(a, b, beta=0.3))
    if epsilon > 0:
        assert not torch.allclose(mean_over_flips(cdpo), dpo(a, b, beta=0.3))


def test_rdpo_is_unbounded_below_and_cdpo_is_not():
    assert rdpo(*at_gap(1e4)) < -100.0 and slope(rdpo, 1e3) < 0.0
    assert cdpo(*at_gap(1e4, -1e4)).min() > 0.0


def test_sppo_hard_is_half_an_ipo_plus_a_pull_that_does_not_look_at_the_label():
    a, b = random_sides("sppo_hard")
    sums = (a.logps - a.ref_logps + b.logps - b.ref_logps).square()
    torch.testing.assert_close(sppo_hard(a, b, beta=0.3), 0.5 * ipo(a, b, beta=0.15) + 0.5 * sums)


def test_a_margin_of_zero_makes_simpo_a_dpo_without_a_reference_on_averages():
    averages = [Responses(side.logps / side.num_tokens, 0 * side.logps, side.num_tokens) for side in (CHOSEN, REJECTED)]
    torch.testing.assert_close(simpo(CHOSEN, REJECTED, beta=2.0, gamma=0.0), dpo(*averages, beta=2.0))


def test_orpo_stays_finite_where_a_response_is_all_but_certain():
    logps = tensor(0.0, -1e-12, -1e-7, -1e-3).requires_grad_()
    ones = torch.ones(4, dtype=torch.float64)
    certain, other = Responses(logps, 0 * ones, ones), Responses(-5 * ones, 0 * ones, ones)
    for value in (orpo(certain, other), orpo(other, certain)):
        (gradient,) = torch.autograd.grad(value.sum(), logps)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_exo_is_zero_at_its_smoothed_label_and_grows_both_ways():
    rest = math.log(0.8 / 0.2)
    values = exo(*at_gap(rest - 1, rest, rest + 1), beta=1.0, epsilon=0.2)
    assert abs(float(values[1])) < 1e-15 and values[0] > 1e-3 and values[2] > 1e-3


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_a_mixture_of_exos_outcomes_is_not_exo_with_a_soft_label(p):
    """It rests at z = (2p - 1) log((1 - epsilon) / epsilon), a soft label would at logit p: hence no soft labels."""

    def pull(z: float) -> float:
        return p * slope(exo, z, beta=1.0, epsilon=0.01) - (1 - p) * slope(exo, -z, beta=1.0, epsilon=0.01)

    assert abs(pull((2 * p - 1) * math.log(0.99 / 0.01))) < 1e-12 < 1e-2 < abs(pull(math.log(p / (1 - p))))


def test_discopop_goes_from_logistic_to_exponential_without_overflow():
    values = discopop(*at_gap(-1e4, -1.0, 1.0, 1e4), beta=1.0)
    torch.testing.assert_close(values, tensor(1e4, nls(-1.0), math.exp(-1.0), 0.0), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("epsilon", "nu"), [(0.1, 0.1), (0.3, 2.0), (0.4, 2.0), (0.02, 1.0)])
def test_dpo_pro_is_the_worst_case_over_its_ball(epsilon, nu):
    """Against a grid of 100,001 labels p, kept where (p - q)^2 / (q (1 - q)) <= nu."""
    a, b = at_gap(-7.0, -0.5, 0.0, 0.5, 7.0)
    q = 1 - epsilon
    p = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    p = p[(p - q).square() <= nu * q * epsilon][:, None]
    worst = (p * dpo(a, b, beta=0.7) + (1 - p) * dpo(b, a, beta=0.7)).amax(dim=0)
    got = dpo_pro(a, b, beta=0.7, epsilon=epsilon, nu=nu)
    torch.testing.assert_close(got, worst, rtol=0, atol=1e-4)
    assert (got >= worst - 1e-12).all()
    torch.testing.assert_close(dpo_pro(a, b, epsilon=epsilon, nu=0.0), cdpo(a, b, epsilon=epsilon))
    torch.testing.assert_close(dpo_pro(a, b, epsilon=0.0, nu=nu), dpo(a, b))

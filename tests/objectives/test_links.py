"""A preference link is a probability, and its loss agrees with it."""

import math

import pytest
import torch

from sail.objectives import LOSSES, Responses

from .test_losses import random_sides, tensor

LINKED = [name for name, row in LOSSES.items() if row.link]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_a_probability_with_the_losss_own_parameters(name):
    row, (a, b) = LOSSES[name], random_sides(name)
    params = dict.fromkeys(row.params, 0.03)
    total = row.link(a, b, **params).exp() + row.link(b, a, **params).exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)
    torch.testing.assert_close(row.link(a, a, **params).exp(), torch.full_like(total, 0.5))


@pytest.mark.parametrize("name", LINKED)
def test_under_its_own_preference_as_the_label_a_loss_pulls_nowhere(name):
    """This is what makes the link the loss's own: the loss with soft labels p is smallest where link = p."""
    row, (a, b) = LOSSES[name], random_sides(name)
    params = dict.fromkeys(row.params, 0.03)
    logps = a.logps.requires_grad_()
    a, p = a._replace(logps=logps), row.link(a, b, **params).exp().detach()
    total = p * row.function(a, b, **params) + (1 - p) * row.function(b, a, **params)
    (gradient,) = torch.autograd.grad(total.sum(), logps)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(
    ("name", "minimiser"),
    [("dpo", lambda p, beta: math.log(p / (1 - p)) / beta), ("ipo", lambda p, beta: (2 * p - 1) / (2 * beta))],
)
def test_the_minimiser_under_a_soft_label_is_the_published_gap(name, minimiser, p):
    row, beta = LOSSES[name], 0.2
    logps = tensor(minimiser(p, beta) - 9.0).requires_grad_()
    a = Responses(logps, tensor(-9.0), tensor(1.0))
    b = Responses(tensor(-5.0), tensor(-5.0), tensor(1.0))
    total = p * row.function(a, b, beta=beta) + (1 - p) * row.function(b, a, beta=beta)
    (gradient,) = torch.autograd.grad(total, logps)
    assert abs(float(gradient)) < 1e-12
    assert float(row.link(a, b, beta=beta).exp().detach()) == pytest.approx(p, abs=1e-12)


def test_where_ipo_is_certain_its_preference_stops_moving():
    logps = tensor(20.0, -20.0).requires_grad_()
    a = Responses(logps, tensor(0.0, 0.0), tensor(1.0, 1.0))
    b = Responses(tensor(0.0, 0.0), tensor(0.0, 0.0), tensor(1.0, 1.0))
    log_q = LOSSES["ipo"].link(a, b, beta=0.1)
    (gradient,) = torch.autograd.grad(log_q.sum(), logps)
    assert log_q.tolist() == [0.0, pytest.approx(-708.396, abs=1e-3)] and gradient.tolist() == [0.0, 0.0]

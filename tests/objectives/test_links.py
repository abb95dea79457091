"""A preference link is a probability, and its loss agrees with it."""

import math

import pytest
import torch

from sail.objectives import LOSSES, Responses

from .by_hand import tensor
from .test_losses import random_sides

LINKED = [name for name, row in LOSSES.items() if row.link]
PARAMS = {"beta": 0.3, "epsilon": 0.05, "gamma": 1.5}


def test_the_losses_that_speak_of_preferences_are_these():
    assert LINKED == ["dpo", "cdpo", "rdpo", "ipo", "ipo_mean", "simpo", "dpo_norm", "sppo_hard"]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_a_probability_with_the_losss_own_parameters(name):
    row, (a, b) = LOSSES[name], random_sides(name)
    params = dict.fromkeys(row.params, 0.03)
    total = row.link(a, b, **params).exp() + row.link(b, a, **params).exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)
    torch.testing.assert_close(row.link(a, a, **params).exp(), torch.full_like(total, 0.5))


def moved(a: Responses, b: Responses, by: torch.Tensor) -> tuple[Responses, Responses]:
    """a up and b down: the direction of preference (sppo_hard also pulls on a + b, label or no label)."""
    return a._replace(logps=a.logps + by), b._replace(logps=b.logps - by)


def expected_loss(name: str, a: Responses, b: Responses, p: torch.Tensor | float, params: dict[str, float]):
    function = LOSSES[name].function
    return p * function(a, b, **params) + (1 - p) * function(b, a, **params)


@pytest.mark.parametrize("name", LINKED)
def test_under_its_own_preference_as_the_label_a_loss_pulls_nowhere(name):
    """This is what makes the link the loss's own: the loss with soft labels p is smallest where link = p."""
    row, (a, b) = LOSSES[name], random_sides(name)
    params = dict.fromkeys(row.params, 0.03)
    p, by = row.link(a, b, **params).exp(), torch.zeros_like(a.logps).requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(name, *moved(a, b, by), p, params).sum(), by)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("p", [0.07, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", LINKED)
def test_where_a_loss_with_soft_labels_is_smallest_its_link_is_the_label(name, p):
    """By golden section over the move, from values only: no derivative, no formula of the link."""
    row, (a, b) = LOSSES[name], random_sides(name)
    params = {key: PARAMS[key] for key in row.params}
    span = torch.full_like(a.logps, 300.0)
    best = golden_section(lambda by: expected_loss(name, *moved(a, b, by), p, params), -span, span)
    assert best.abs().max() < 299.0
    got = row.link(*moved(a, b, best), **params).exp()
    torch.testing.assert_close(got, torch.full_like(got, p), rtol=0, atol=1e-5)


def golden_section(function, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The minimiser of a function with one minimum in [low, high], elementwise, to about the root of rounding."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(120):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        keeps_left = function(left) < function(right)
        low, high = torch.where(keeps_left, low, left), torch.where(keeps_left, right, high)
    return (low + high) / 2.0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(
    ("name", "minimiser"),
    [
        ("dpo", lambda p, beta: math.log(p / (1 - p)) / beta),
        ("ipo", lambda p, beta: (2 * p - 1) / (2 * beta)),
        ("cdpo", lambda p, beta: math.log((0.8 * p + 0.1) / (0.9 - 0.8 * p)) / beta),
    ],
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


def test_where_a_clipped_link_is_certain_its_preference_stops_moving():
    zeros = tensor(0.0, 0.0)
    for name, params in (("ipo", {"beta": 0.1}), ("cdpo", {"beta": 0.5, "epsilon": 0.1}), ("sppo_hard", {"beta": 0.2})):
        logps = tensor(20.0, -20.0).requires_grad_()
        log_q = LOSSES[name].link(Responses(logps, zeros, zeros), Responses(zeros, zeros, zeros), **params)
        (gradient,) = torch.autograd.grad(log_q.sum(), logps)
        assert log_q.tolist() == [0.0, pytest.approx(-708.396, abs=1e-3)] and gradient.tolist() == [0.0, 0.0]


def test_rdpo_under_its_own_noisy_preference_is_dpo_under_dpos():
    a, b = random_sides("rdpo")
    robust, plain = {"beta": 0.3, "epsilon": 0.2}, {"beta": 0.3}
    noisy, clean = LOSSES["rdpo"].link(a, b, **robust).exp(), LOSSES["dpo"].link(a, b, **plain).exp()
    torch.testing.assert_close(noisy, 0.2 + 0.6 * clean)
    torch.testing.assert_close(expected_loss("rdpo", a, b, noisy, robust), expected_loss("dpo", a, b, clean, plain))


def test_without_smoothing_or_margin_the_links_are_those_of_the_plain_losses():
    a, b = random_sides("dpo")
    for name in ("cdpo", "rdpo"):
        assert torch.equal(LOSSES[name].link(a, b, epsilon=0.0), LOSSES["dpo"].link(a, b))
        torch.testing.assert_close(LOSSES[name].link(a, b, epsilon=1e-12), LOSSES["dpo"].link(a, b))
    one_token = [Responses(side.logps, 0.0 * side.ref_logps, torch.ones_like(side.logps)) for side in (a, b)]
    torch.testing.assert_close(LOSSES["simpo"].link(*one_token, gamma=0.0), LOSSES["dpo"].link(*one_token, beta=2.0))

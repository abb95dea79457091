"""The contract of an objective, run over the whole registry. A new loss adds its row to BY_HAND in by_hand.py."""

import math

import pytest
import torch

from sail.core.errors import UserError
from sail.objectives import ALIASES, LOSSES, Responses, find_loss
from sail.objectives.averaged import dpo_norm, ipo_mean
from sail.objectives.pairwise import dpo, hinge, ipo, slic

from .by_hand import BY_HAND, CHOSEN, REJECTED, nls, tensor

NAMES = list(LOSSES)


def sides(name: str, *both: Responses) -> tuple[Responses, ...]:
    return both if LOSSES[name].unit == "pair" else both[:1]


def random_sides(name: str, batch: int = 5) -> tuple[Responses, ...]:
    generator = torch.Generator().manual_seed(3)

    def negative() -> torch.Tensor:
        return -10.0 * torch.rand(batch, generator=generator, dtype=torch.float64) - 1.0

    lengths = tensor(*(3.0 + i for i in range(batch)))
    return sides(name, *(Responses(negative(), negative(), lengths) for _ in range(2)))


def with_logps(responses: Responses, logps: torch.Tensor) -> Responses:
    return responses._replace(logps=logps)


@pytest.mark.parametrize("name", NAMES)
def test_values_by_hand(name):
    assert set(BY_HAND) == set(LOSSES)
    params, values = BY_HAND[name]
    got = LOSSES[name].function(*sides(name, CHOSEN, REJECTED), **params)
    torch.testing.assert_close(got, tensor(*values), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_one_value_per_row_and_rows_know_nothing_of_each_other(name):
    function = LOSSES[name].function
    batch = random_sides(name)
    whole = function(*batch)
    assert whole.shape == (5,) and whole.dtype == torch.float64
    for i in range(5):
        alone = function(*(Responses(*(field[i : i + 1] for field in side)) for side in batch))
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_finite_difference(name):
    """Sixth-order central differences with step 1e-3 (errors near 1e-13), away from the kinks by the fixed seed."""
    function, batch = LOSSES[name].function, random_sides(name)
    for k, side in enumerate(batch):
        logps = side.logps.clone().requires_grad_()

        def value(logps: torch.Tensor, k: int = k, side: Responses = side) -> torch.Tensor:
            return function(*batch[:k], with_logps(side, logps), *batch[k + 1 :])

        (gradient,) = torch.autograd.grad(value(logps).sum(), logps)
        numeric = sum(
            weight * (value(side.logps + j * 1e-3) - value(side.logps - j * 1e-3)) / 0.06
            for weight, j in ((45, 1), (-9, 2), (1, 3))
        )
        torch.testing.assert_close(gradient, numeric, rtol=1e-10, atol=1e-10)
        assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("beta", [None, 1.0])
@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("name", NAMES)
def test_loss_link_and_gradient_are_finite_at_gaps_of_ten_thousand_nats(name, gap, beta):
    row = LOSSES[name]
    params = {"beta": beta} if beta and "beta" in row.params else {}
    logps = tensor(min(gap, 0.0) - 1.0).requires_grad_()
    other = tensor(-max(gap, 0.0) - 1.0)
    near = tensor(-1.0)
    batch = sides(name, Responses(logps, near, tensor(7.0)), Responses(other, near, tensor(7.0)))
    for function in (row.function, row.link):
        if function is not None:
            value = function(*batch, **params)
            (gradient,) = torch.autograd.grad(value.sum(), logps)
            assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_declares_what_is_true(name):
    row = LOSSES[name]
    batch = random_sides(name)
    without = {"reference": "ref_logps", "num_tokens": "num_tokens"}
    for need, field in without.items():
        changed = row.function(
            *(side._replace(**{field: getattr(side, field) * 2 + i}) for i, side in enumerate(batch))
        )
        assert torch.equal(changed, row.function(*batch)) == (need not in row.needs)
    assert all(isinstance(default, float) for default in row.params.values())
    assert row.source and row.function.__doc__
    assert math.isfinite(row.baseline_start())


def test_the_first_baseline_is_the_loss_at_the_reference():
    assert LOSSES["dpo"].baseline_start(beta=0.3) == pytest.approx(math.log(2.0))
    assert LOSSES["ipo"].baseline_start(beta=0.1) == pytest.approx(25.0)
    assert LOSSES["slic"].baseline_start(delta=2.0) == pytest.approx(2.0)
    assert LOSSES["simpo"].baseline_start(beta=2.0, gamma=1.0) == pytest.approx(nls(-1.0))
    assert LOSSES["sppo_hard"].baseline_start(beta=0.5) == pytest.approx(2.0)


def test_summed_and_averaged_log_probs_are_not_the_same_loss():
    """On equal lengths ipo_mean is ipo at another beta; on unequal ones nothing is."""
    long = REJECTED._replace(num_tokens=tensor(50.0, 10.0, 20.0))
    averaged = {name for name, row in LOSSES.items() if "num_tokens" in row.needs}
    assert averaged == {"ipo_mean", "dpo_norm", "simpo", "orpo", "sft"}
    for name in set(LOSSES) - averaged:
        assert torch.equal(LOSSES[name].function(CHOSEN, long), LOSSES[name].function(CHOSEN, REJECTED))
    for name in averaged - {"sft"}:
        assert not torch.equal(LOSSES[name].function(CHOSEN, long), LOSSES[name].function(CHOSEN, REJECTED))
    assert not torch.equal(LOSSES["sft"].function(long), LOSSES["sft"].function(REJECTED))
    even = [side._replace(num_tokens=tensor(4.0, 4.0, 4.0)) for side in (CHOSEN, REJECTED)]
    torch.testing.assert_close(dpo_norm(*even, beta=2.0), dpo(*even, beta=0.5))
    torch.testing.assert_close(16.0 * ipo_mean(*even, beta=0.4), ipo(*even, beta=0.1))


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if "num_tokens" in row.needs])
def test_a_response_without_tokens_costs_a_finite_number_and_pulls_nowhere(name):
    logps = tensor(0.0).requires_grad_()
    empty = Responses(logps, tensor(0.0), tensor(0.0))
    other = Responses(tensor(-9.0), tensor(-8.0), tensor(4.0))
    value = LOSSES[name].function(*sides(name, empty, other))
    assert torch.isfinite(value).all() and torch.isfinite(torch.autograd.grad(value, logps)[0]).all()
    assert LOSSES["sft"].function(empty).tolist() == [0.0]


def test_a_loss_is_found_by_name_and_alias_and_a_wrong_name_is_explained():
    assert find_loss("sigmoid") is LOSSES["dpo"] and set(ALIASES.values()) <= set(LOSSES)
    with pytest.raises(UserError, match="Use one of dpo, cdpo"):
        find_loss("dpoo")
    with pytest.raises(UserError, match="sorts log-ratios over the batch"):
        find_loss("aot", where="routes.online.loss")


def test_hinge_is_trls_and_not_slic():
    assert "SLiC-HF has no reference" in LOSSES["hinge"].elsewhere
    assert not torch.equal(hinge(CHOSEN, REJECTED, beta=1.0), slic(CHOSEN, REJECTED))

"""What a pair teaches a reward model, by hand: margins, ties, soft labels, known noise."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sail.core.errors import UserError
from sail.core.labeler_settings import RewardFitSettings
from sail.core.settings import parse_settings
from sail.labeling.reward_loss import TIES, pair_loss

LN3 = math.log(3.0)


def loss_of(d: float, p: float = 1.0, m: float = 0.0, **options: object) -> float:
    values = torch.tensor([[d], [p], [m]], dtype=torch.float64)
    return float(pair_loss(**options)(*values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "likelihood"),
    [
        (loss_of(LN3), 3 / 4),  # e^d : 1
        (loss_of(0.0), 1 / 2),
        (loss_of(2 * LN3, m=LN3), 3 / 4),
        (loss_of(LN3, label_noise=0.1), 0.9 * 3 / 4 + 0.1 * 1 / 4),
        (loss_of(0.0, ties="rao_kupper"), 1 / 4),  # 1 : theta
        (loss_of(LN3, ties="rao_kupper"), 1 / 2),  # 3 : theta
        (loss_of(0.0, 0.5, ties="rao_kupper"), 1 / 2),  # the rest
        (loss_of(0.0, 0.5, ties="rao_kupper", threshold=2.0), 1 / 3),  # (theta - 1) / (theta + 1)
        (loss_of(0.0, 0.5, 7.0, ties="davidson"), 1 / 3),  # 1 : 1 : nu; a tie has no margin
        (loss_of(2 * LN3, ties="davidson", threshold=2.0), 9 / 16),  # 3 : 1/3 : 2
        (loss_of(2 * LN3, 0.5, ties="davidson", threshold=2.0), 6 / 16),
        (loss_of(2 * LN3, ties="davidson", threshold=2.0, label_noise=0.2), 0.8 * 9 / 16 + 0.2 / 16),
    ],
)
def test_the_loss_is_minus_the_log_of_a_likelihood_by_hand(found: float, likelihood: float) -> None:
    assert found == pytest.approx(-math.log(likelihood), abs=1e-12)


def test_a_soft_pair_is_a_cross_entropy_with_its_margin_on_either_winner() -> None:
    assert loss_of(LN3, 0.8) == pytest.approx(-0.8 * math.log(3 / 4) - 0.2 * math.log(1 / 4))
    assert loss_of(LN3, 0.8, LN3) == pytest.approx(-0.8 * math.log(1 / 2) - 0.2 * math.log(1 / 10))
    assert loss_of(LN3, 0.5, LN3) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)


@pytest.mark.parametrize("model", TIES.values(), ids=TIES)
def test_the_outcomes_are_all_there_are(model: Callable[[Tensor, float], tuple[Tensor | None, ...]]) -> None:
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)
    probabilities = sum(outcome.exp() for outcome in model(x, 2.5) if outcome is not None)
    torch.testing.assert_close(probabilities, torch.ones_like(x))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("label_noise", [0.0, 0.2])
def test_the_gradient_is_that_of_finite_differences_and_the_loss_never_overflows(ties: str, label_noise: float) -> None:
    loss = pair_loss(ties, label_noise=label_noise)
    d = torch.tensor([-3.0, 0.4, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    p, m = torch.tensor([[1.0, 0.7, 0.5, 1.0], [0.0, 0.3, 1.0, 2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda d: loss(d, p, m), d)
    far = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    found = loss(far, p.float(), m.float())
    found.sum().backward()
    assert found.isfinite().all() and far.grad is not None and far.grad.isfinite().all()


def test_with_known_noise_a_wrong_verdict_costs_a_bounded_amount() -> None:
    assert loss_of(-1e4, label_noise=0.1) == pytest.approx(-math.log(0.1))


def test_with_known_noise_the_expected_loss_is_least_at_the_true_difference() -> None:
    """Of pairs whose better side wins with odds 3 and whose verdicts are turned round one time in five."""
    p_seen = 0.8 * 3 / 4 + 0.2 * 1 / 4
    at = [LN3 + shift for shift in (-0.1, 0.0, 0.1)]
    expected = [p_seen * loss_of(d, label_noise=0.2) + (1 - p_seen) * loss_of(-d, label_noise=0.2) for d in at]
    assert min(expected) == expected[1]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tie_threshold": 2.0}, "tie_threshold is that of a model of ties"),
        ({"ties": "rao_kupper", "tie_threshold": 1.0}, "theta of rao_kupper is above 1"),
        ({"margin": -1.0}, "a margin is 0 or above"),
        ({"label_noise": 0.5}, "less than 0.5"),
    ],
)
def test_settings_that_say_nothing_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_settings(RewardFitSettings, {"data": "prefs", **values})

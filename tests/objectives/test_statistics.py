"""Batch statistics: what they are, that they stop a hopeless step, and that no gradient flows through them."""

import math

import pytest
import torch

from sail.core.errors import UserError
from sail.objectives import Responses
from sail.objectives.pointwise import kto, rwr
from sail.objectives.statistics import kto_z0, rwr_log_z

from .by_hand import tensor
from .populations import kl, make_toy

NOTHING = tensor(math.nan)


def scored(*scores: float) -> Responses:
    """Labels alone: no log-prob is known where the statistic of reward weights is taken."""
    nan = torch.full((len(scores),), math.nan, dtype=torch.float64)
    return Responses(nan, nan, nan, tensor(*scores))


# ---- reward weights ------------------------------------------------------------------------------------------------


def test_log_z_makes_the_mean_weight_one_and_does_not_see_the_zero_of_the_scores():
    scores = (0.3, -1.0, 2.0, 0.7)
    log_z, _ = rwr_log_z(scored(*scores), temperature=0.5)
    weights = (tensor(*scores) / 0.5 - log_z).exp()
    assert float(weights.mean()) == pytest.approx(1.0)
    batch, shifted = (
        Responses(tensor(-4.0, -3.0, -9.0, -1.0), NOTHING, NOTHING, tensor(*scores) + by) for by in (0.0, 50.0)
    )
    torch.testing.assert_close(
        rwr(batch, log_z, temperature=0.5), rwr(shifted, rwr_log_z(shifted, temperature=0.5).value, temperature=0.5)
    )


def test_the_effective_share_is_kishs_and_counts_capped_weights():
    """Weights 1, 1, 4 over their mean 2: (1 + 1 + 4)^2 / (3 (1 + 1 + 16)); capped at 1: (1/2 + 1/2 + 1)^2 / ..."""
    scores = scored(0.0, 0.0, math.log(4.0))
    _, metrics = rwr_log_z(scores)
    assert metrics == {"objective/effective_share": pytest.approx(36.0 / (3.0 * 18.0))}
    _, metrics = rwr_log_z(scores, cap=1.0)
    assert metrics == {"objective/effective_share": pytest.approx(4.0 / (3.0 * 1.5))}
    assert rwr_log_z(scored(7.0, 7.0)).metrics == {"objective/effective_share": pytest.approx(1.0)}


def test_scores_without_measure_stop_the_run_and_say_what_to_change():
    one_of_twenty = scored(*[0.0] * 19, 1e4)
    with pytest.raises(UserError, match=r"5\.0 % of the batch effective, below 10 %.*normalise the scores"):
        rwr_log_z(one_of_twenty)
    value, metrics = rwr_log_z(one_of_twenty, min_effective=0.05)
    assert torch.isfinite(value) and metrics["objective/effective_share"] == pytest.approx(0.05)
    assert rwr_log_z(one_of_twenty, temperature=1e4).metrics["objective/effective_share"] > 0.8
    with pytest.raises(UserError, match="nan % of the batch"):
        rwr_log_z(scored(0.0, math.nan))


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_huge_scores_give_finite_weights(size):
    scores = scored(size, size + 1.0, size - 1.0)
    log_z = rwr_log_z(scores).value
    loss = rwr(scores._replace(logps=tensor(-1.0, -2.0, -3.0)), log_z)
    near = scored(0.0, 1.0, -1.0)
    torch.testing.assert_close(loss, rwr(near._replace(logps=tensor(-1.0, -2.0, -3.0)), rwr_log_z(near).value))


# ---- KTO's reference point -----------------------------------------------------------------------------------------


def test_z0_is_the_mean_log_ratio_clamped_at_zero_without_a_gradient():
    logps = tensor(-2.0, -5.0).requires_grad_()
    z0, metrics = kto_z0(Responses(logps, tensor(-4.0, -6.0), NOTHING))
    assert float(z0) == 1.5 and metrics == {"objective/kto_z0": 1.5} and not z0.requires_grad
    assert kto_z0(Responses(logps, tensor(-1.0, -5.0), NOTHING)).value == 0.0
    loose = tensor(1.5)[0].requires_grad_()
    responses = Responses(logps, tensor(-4.0, -6.0), NOTHING, tensor(1.0, 0.0))
    assert torch.autograd.grad(kto(responses, loose).sum(), loose, allow_unused=True) == (None,)


def test_z0_of_the_whole_batch_does_not_hang_on_how_the_batch_is_cut():
    """Taken over each microbatch instead, as elsewhere, it does."""
    batch = [tensor(-4.0, -6.0, -5.0, -9.0), tensor(-5.0, -6.0, -3.0, -8.0), tensor(3.0, 4.0, 5.0, 6.0)]
    thumbs, strangers = tensor(1.0, 0.0, 1.0, 0.0), [tensor(-1.0, -2.0, -3.0, -4.0), tensor(-2.0, -2.5, -3.0, -9.0)]
    z0 = kto_z0(Responses(*strangers, NOTHING)).value

    def losses(rows: slice, z0: torch.Tensor) -> torch.Tensor:
        return kto(Responses(*(column[rows] for column in batch), thumbs[rows]), z0)

    cuts = [slice(0, 2), slice(2, 4)]
    of_parts = [kto_z0(Responses(*(column[rows] for column in strangers), NOTHING)).value for rows in cuts]
    whole = losses(slice(0, 4), z0)
    assert torch.equal(torch.cat([losses(rows, z0) for rows in cuts]), whole)
    apart = torch.cat([losses(rows, own) for rows, own in zip(cuts, of_parts, strict=True)])
    assert not torch.allclose(apart, whole)


def test_z0_is_the_divergence_where_the_policy_does_not_look_at_the_prompt_and_only_an_estimate_elsewhere():
    """E over prompts x and strangers y' ~ pi(.|x') of log pi(y'|x) - log pi_ref(y'|x): below 0 where they differ."""
    toy = make_toy()

    def z0(policy: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        strangers = policy.flip(0).exp()  # two prompts: the other one's responses
        ratios = (strangers * (policy - ref)).sum(1)
        equal = Responses(ratios, 0 * ratios, NOTHING)
        return kto_z0(equal).value

    half = tensor(0.5, 0.5)
    blind, ref = toy.theta[:1].expand(2, 3).log_softmax(1), toy.ref[:1].expand(2, 3)
    torch.testing.assert_close(z0(blind, ref), kl(blind, ref, half))
    own_way = (3.0 * torch.eye(2, 3, dtype=torch.float64)).log_softmax(1)  # each prompt its own response
    assert z0(own_way, torch.zeros(2, 3).double().log_softmax(1)) == 0.0 < kl(own_way, ref, half)

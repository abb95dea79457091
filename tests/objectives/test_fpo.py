"""FPO: the side its gradient takes, and which features are compared. (Its values by hand: by_hand.py.)"""

import math

import torch

from sail.objectives.averaged import dpo_norm
from sail.objectives.features import feature_distances, fpo

from .by_hand import CHOSEN, REJECTED, tensor


def test_without_the_constraint_it_is_length_normalised_dpo():
    torch.testing.assert_close(fpo(CHOSEN, REJECTED, beta=2.0, alpha=0.0), dpo_norm(CHOSEN, REJECTED, beta=2.0))


def test_the_gradient_draws_the_rejected_features_to_the_reference_and_leaves_the_chosen_alone():
    """d/dM_l = alpha beta sigmoid(-u) with u = 2 * (1.2 - .5): positive, so a step down shrinks M_l."""
    moved = [tensor(1.0).requires_grad_(), tensor(2.0).requires_grad_()]
    sides = [
        side._replace(
            logps=side.logps[:1], ref_logps=side.ref_logps[:1], num_tokens=side.num_tokens[:1], feature_distances=m
        )
        for side, m in zip((CHOSEN, REJECTED), moved, strict=True)
    ]
    fpo(*sides, beta=2.0, alpha=0.5).sum().backward()
    torch.testing.assert_close(moved[1].grad, tensor(0.5 * 2.0 / (1.0 + math.exp(1.4))))
    assert moved[0].grad is None or moved[0].grad.abs().max() == 0.0


def test_the_largest_features_of_both_sides_are_compared():
    """k = 1: the policy's is 0, the reference's 2; feature 1 moved too and is nobody's largest."""
    features, reference = tensor(3.0, 1.0, 0.0, 2.0)[None], tensor(1.0, 0.5, 4.0, 2.0)[None]
    torch.testing.assert_close(feature_distances(features, reference, 1), tensor(4.0 + 16.0))
    torch.testing.assert_close(feature_distances(features, reference, 2), tensor((4.0 + 16.0 + 0.0) / 2))
    torch.testing.assert_close(feature_distances(features, reference, 50), tensor((4.0 + 0.25 + 16.0) / 4))


def test_a_feature_that_is_off_is_nobodys_largest():
    """The policy has one active feature and k is 2: which 0 would come second is no question."""
    features, reference = tensor(1.0, 0.0, 0.0, 0.0)[None], tensor(0.0, 9.0, 8.0, 0.1)[None]
    torch.testing.assert_close(feature_distances(features, reference, 2), tensor((1.0 + 81.0 + 64.0) / 2))


def test_rows_know_nothing_of_each_other_and_equal_features_have_no_gradient():
    features = torch.rand(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = features.flip(0)
    whole = feature_distances(features, reference, 3)
    alone = [feature_distances(features[i : i + 1], reference[i : i + 1], 3)[0] for i in range(4)]
    assert torch.equal(whole, torch.stack(alone)) and (whole > 0).all()
    same = features.clone().requires_grad_()
    feature_distances(same, features, 3).sum().backward()
    assert same.grad is not None and same.grad.abs().max() == 0.0

"""Three mistakes seen in the field, each caught by the very check that the right estimator passes.

1. a score term of the wrong sign (the released SAIL code's hook divides L by log pi, which is negative);
2. best against worst of n scored as if it were a pair of independent draws;
3. a leave-one-out baseline over pairs that share responses.
"""

from itertools import combinations, product

import numpy as np
import torch

from sail.objectives.online import OnlineTerms, PairLosses, labels_by_others
from sail.objectives.pairwise import dpo
from sail.objectives.responses import Responses

from .exact_sums import complex_step, exact_gradient, exact_losses, log_softmax
from .tabular import all_pairs, expected_gradient, make_world

BETA = {"beta": 0.7}
EXACT = 1e-12


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Relative to the exact gradient's length."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def right(losses, p_a, preference, online):
    return labels_by_others(losses, p_a, online)


def test_a_score_term_of_the_wrong_sign_is_caught():
    world = make_world()
    pairs = all_pairs(world, "dpo", BETA)
    want = exact_gradient(world, "dpo", "others-soft", BETA, sail_coef=1.0)
    online = OnlineTerms(pairs.score_logps, 1.0, baseline=0.5)

    def wrong_sign(losses, p_a, preference, online):
        plain = labels_by_others(losses, p_a, online._replace(sail_coef=0.0))
        return 2 * plain - labels_by_others(losses, p_a, online)

    def released_hook(losses, p_a, preference, online):
        """L / log pi in the place of L, on either response."""
        plain = labels_by_others(losses, p_a, online._replace(sail_coef=0.0))
        return plain + sum((plain / side.logps).detach() * side.logps for side in (pairs.a, pairs.b))

    assert error(expected_gradient(pairs, "others-soft", right, online), want) < EXACT
    assert error(expected_gradient(pairs, "others-soft", wrong_sign, online), want) > 0.5
    assert error(expected_gradient(pairs, "others-soft", released_hook, online), want) > 0.5


class Groups:
    """Every group of n responses to one prompt: R ** n of them, with their probabilities."""

    def __init__(self, n: int) -> None:
        self.world = make_world(num_prompts=1, num_responses=3, seed=11)
        self.theta = torch.tensor(self.world.theta[0], requires_grad=True)
        self.logps = torch.log_softmax(self.theta, dim=-1)
        self.ref = torch.log_softmax(torch.tensor(self.world.ref_theta[0]), dim=-1)
        self.members = torch.tensor(list(product(range(3), repeat=n)))  # [3 ** n, n]
        self.probs = self.logps[self.members].sum(dim=1).exp().detach()
        self.labeler = torch.tensor(self.world.labeler[0])

    def pair(self, a: torch.Tensor, b: torch.Tensor) -> tuple[PairLosses, torch.Tensor, torch.Tensor]:
        sides = [Responses(self.logps[y], self.ref[y], torch.ones_like(self.ref[y])) for y in (a, b)]
        losses = PairLosses(dpo(sides[0], sides[1], **BETA), dpo(sides[1], sides[0], **BETA))
        return losses, self.labeler[a, b], sides[0].logps + sides[1].logps

    def gradient(self, losses: torch.Tensor) -> np.ndarray:
        return torch.autograd.grad((self.probs * losses).sum(), self.theta, retain_graph=True)[0].numpy()


def test_best_against_worst_needs_the_log_probs_of_all_n():
    groups = Groups(4)
    rewards = torch.tensor(groups.world.rewards[0])[groups.members]
    rows = torch.arange(len(groups.members))
    best, worst = (groups.members[rows, index] for index in (rewards.argmax(dim=1), rewards.argmin(dim=1)))
    losses, p_a, pair_logps = groups.pair(best, worst)

    def exact(theta: np.ndarray) -> complex:
        table = exact_losses(groups.world, "dpo", theta[None], BETA)[0]
        probs = np.exp(log_softmax(theta))[groups.members.numpy()].prod(axis=1)
        p = p_a.numpy()
        return complex((probs * (p * table[best, worst] + (1 - p) * table[worst, best])).sum())

    want = complex_step(exact, groups.world.theta[0])
    all_n = OnlineTerms(groups.logps[groups.members].sum(dim=1), 1.0, baseline=0.5)
    only_pair = OnlineTerms(pair_logps, 1.0, baseline=0.5)
    assert error(groups.gradient(labels_by_others(losses, p_a, all_n)), want) < EXACT
    assert error(groups.gradient(labels_by_others(losses, p_a, only_pair)), want) > 0.1


def test_a_leave_one_out_baseline_over_overlapping_pairs_shrinks_the_score_term():
    """K = 4 responses give M = 6 pairs; the term loses (K - 2) / (M - 1) = 2/5 of itself."""
    groups = Groups(4)
    pairs = [groups.pair(groups.members[:, i], groups.members[:, j]) for i, j in combinations(range(4), 2)]
    values = torch.stack([labels_by_others(losses, p, OnlineTerms()).detach() for losses, p, _ in pairs])

    def mean_gradient(baselines, sail_coef: float = 1.0) -> np.ndarray:
        rows = [
            labels_by_others(losses, p, OnlineTerms(logps, sail_coef, baseline))
            for (losses, p, logps), baseline in zip(pairs, baselines, strict=True)
        ]
        return groups.gradient(torch.stack(rows).mean(dim=0))

    running_mean = [0.5] * 6
    leave_one_out = [(values.sum(dim=0) - value) / 5 for value in values]
    want = exact_gradient(groups.world, "dpo", "others-soft", BETA, sail_coef=1.0)[0]
    plain = exact_gradient(groups.world, "dpo", "others-soft", BETA, sail_coef=0.0)[0]
    assert error(mean_gradient(running_mean), want) < EXACT
    assert error(mean_gradient(leave_one_out), want) > 0.1
    assert error(mean_gradient(leave_one_out), plain + (1 - 2 / 5) * (want - plain)) < EXACT

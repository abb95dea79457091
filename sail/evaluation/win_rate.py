"""Win rate of a policy against the starting policy on the same prompts, with a bootstrap interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sail.core.records import ScoredGroup
from sail.core.seeds import SeedPart, derive_seed


class Interval(NamedTuple):
    low: float
    high: float


def win_share(scores: Sequence[float], start_scores: Sequence[float]) -> float:
    """mean over all (r, r0) in scores x start_scores of 1[r > r0] + 1/2 1[r = r0], in [0, 1].

    Ties are half, never losses.
    """
    difference = np.subtract.outer(np.asarray(scores), np.asarray(start_scores))
    return float(np.mean(0.5 * (1.0 + np.sign(difference))))


def prompt_win_shares(scored: Sequence[ScoredGroup], start: Sequence[ScoredGroup]) -> np.ndarray:
    """win_share of every prompt, shape [P], in the order of `scored`.

    Raises ValueError unless both were sampled on the same prompts.
    """
    start_scores = {row.prompt_id: row.scores for row in start}
    if {row.prompt_id for row in scored} != set(start_scores):
        raise ValueError("the policy and the starting policy were not sampled on the same prompts")
    return np.array([win_share(row.scores, start_scores[row.prompt_id]) for row in scored], dtype=np.float64)


def bootstrap_interval(
    values_P: np.ndarray, *seed: SeedPart, level: float = 0.95, num_resamples: int = 2000
) -> Interval | None:
    """Percentile bootstrap interval of the mean of values_P [P] (Efron 1979), resampling prompts.

    The same seed gives the same interval. None for fewer than two prompts; values that are all equal give an
    interval of width zero, which says only that these prompts did not disagree.
    """
    if len(values_P) < 2:
        return None
    random = np.random.Generator(np.random.Philox(derive_seed(*seed, "bootstrap")))
    size = len(values_P)
    means = [values_P[random.integers(size, size=size)].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))

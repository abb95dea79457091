"""Win rates and their bootstrap intervals."""

import numpy as np
import pytest

from sail.evaluation.win_rate import bootstrap_interval, prompt_win_shares, win_share

from .doubles import scores


def test_a_win_counts_one_a_tie_half_over_all_pairs_of_samples() -> None:
    # 3 > 1, 3 > 2, 3 = 3;  2 > 1, 2 = 2, 2 < 3:  (1 + 1 + .5 + 1 + .5 + 0) / 6
    assert win_share([3.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(4 / 6)


def test_shares_meet_by_prompt_not_by_position() -> None:
    shares_P = prompt_win_shares([scores("a", 1.0), scores("b", 0.0)], [scores("b", 1.0), scores("a", 0.0)])
    assert shares_P.tolist() == [1.0, 0.0]


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        prompt_win_shares([scores("a", 1.0)], [scores("b", 1.0)])


def test_the_interval_is_a_function_of_its_seed() -> None:
    values_P = np.linspace(0, 1, 30)
    first, again, other = (bootstrap_interval(values_P, seed, "win_rate") for seed in (1, 1, 2))
    assert first == again != other


def test_the_interval_has_the_width_of_the_normal_one() -> None:
    values_P = np.repeat([0.0, 1.0], 200)
    interval = bootstrap_interval(values_P, 3)
    assert interval is not None
    half_width = 1.96 * 0.5 / np.sqrt(400)
    assert interval.low == pytest.approx(0.5 - half_width, abs=0.006)
    assert interval.high == pytest.approx(0.5 + half_width, abs=0.006)


def test_nineteen_of_twenty_intervals_cover_the_truth() -> None:
    draws = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values_P = draws.choice([0.0, 0.5, 1.0], size=80, p=[0.2, 0.2, 0.6])
        interval = bootstrap_interval(values_P, trial, num_resamples=300)
        assert interval is not None
        covered += interval.low <= 0.7 <= interval.high
    assert 180 <= covered <= 198


def test_one_prompt_has_no_interval() -> None:
    assert bootstrap_interval(np.array([1.0]), 0) is None

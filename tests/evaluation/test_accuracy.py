"""Implicit reward accuracy and margins."""

import pytest

from sail.core.records import DatasetVerdict
from sail.evaluation.accuracy import (
    Order,
    dataset_orders,
    implicit_rewards,
    mean_margin,
    order_accuracy,
    scored_orders,
)

from .doubles import scores


def test_the_implicit_reward_is_beta_times_the_log_ratio() -> None:
    assert implicit_rewards({"y": -3.0, "z": -2.0}, {"y": -5.0, "z": -2.0}, 0.1) == {"y": 0.2, "z": 0.0}


def test_accuracy_counts_equal_rewards_half_and_the_margin_is_a_mean() -> None:
    rewards = {"a": 1.0, "b": 0.0, "c": 0.0}
    orders = [Order("a", "b"), Order("b", "c"), Order("b", "a"), Order("a", "c")]  # right, equal, wrong, right
    assert order_accuracy(rewards, orders) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert mean_margin(rewards, orders) == pytest.approx((1 + 0 - 1 + 1) / 4)


def test_without_pairs_nothing_is_claimed() -> None:
    assert order_accuracy({}, []) is None
    assert mean_margin({}, []) is None


def test_samples_make_all_their_pairs_but_ties() -> None:
    orders = scored_orders([scores("a", 1.0, 2.0, 1.0), scores("b", 5.0)])
    assert orders == [Order("p-a-1", "p-a-0"), Order("p-a-1", "p-a-2")]


def test_a_dataset_says_which_is_better_itself() -> None:
    verdicts = [DatasetVerdict("p", "w", "l", None, None), DatasetVerdict("p", "w", "x", None, None, p_chosen=0.5)]
    assert dataset_orders(verdicts) == [Order("w", "l")]

"""Accuracy and temperature of a reward model on held-out pairs."""

import numpy as np
import pytest

from sail.labeling.calibration import (
    TEMPERATURE_RANGE,
    accuracy,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)


def test_the_fitted_temperature_minimises_the_likelihood() -> None:
    random_stream = np.random.default_rng(0)
    margins = random_stream.normal(size=4000) * 3
    won = random_stream.random(4000) < 1 / (1 + np.exp(-margins / 2.5))  # labels drawn at temperature 2.5
    signed = np.where(won, margins, -margins).tolist()
    temperature = fit_temperature(signed)
    assert temperature == pytest.approx(2.5, abs=0.25)
    least = negative_log_likelihood(signed, temperature)
    assert least < min(negative_log_likelihood(signed, temperature * factor) for factor in (0.95, 1.05))


def test_the_temperature_stays_in_its_range() -> None:
    assert fit_temperature([1.0, 2.0]) == pytest.approx(TEMPERATURE_RANGE[0])
    assert fit_temperature([-1.0, -2.0]) == pytest.approx(TEMPERATURE_RANGE[1])


def test_accuracy_counts_ties_half() -> None:
    assert accuracy([1.0, -1.0, 0.0, 2.0]) == 0.625


def test_ties_of_the_data_are_no_test_of_the_order() -> None:
    assert accuracy([1.0, -1.0, 9.0], [1.0, 0.7, 0.5]) == 0.5
    assert accuracy([9.0], [0.5]) is None


def test_soft_pairs_ask_for_the_temperature_that_gives_their_probability() -> None:
    nine_to_one = float(np.log(9.0))
    assert fit_temperature([2 * nine_to_one] * 3, [0.9] * 3) == pytest.approx(2.0, abs=1e-6)
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert negative_log_likelihood([2 * nine_to_one], 2.0, [0.9]) == pytest.approx(entropy)


def test_the_calibration_error_by_hand() -> None:
    three_to_one = float(np.log(3.0))  # q = 3/4 for all four pairs, of which half are right
    margins = [three_to_one, three_to_one, -three_to_one, -three_to_one]
    assert expected_calibration_error(margins, 1.0) == pytest.approx(0.25)
    assert expected_calibration_error([], 1.0) is None

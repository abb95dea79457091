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


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_known_noise_of_the_verdicts_is_no_want_of_confidence(noise: float) -> None:
    margins_P = np.array([-1.0, 0.3, 2.0, 6.0, 40.0])
    true_P = 1 / (1 + np.exp(-margins_P / 1.7))
    seen = ((1 - noise) * true_P + noise * (1 - true_P)).tolist()
    margins = margins_P.tolist()
    assert fit_temperature(margins, seen, noise=noise) == pytest.approx(1.7, abs=1e-6)
    assert fit_temperature(margins, seen) > 2.5  # which would be the noise put back into every soft label
    entropy = float(np.mean([-p * np.log(p) - (1 - p) * np.log(1 - p) for p in seen]))
    assert negative_log_likelihood(margins, 1.7, seen, noise=noise) == pytest.approx(entropy)
    assert expected_calibration_error(margins, 1.7, seen, noise=noise) == pytest.approx(0.0, abs=1e-12)


def test_of_two_hollows_in_the_likelihood_of_noisy_verdicts_the_deeper_one_is_found() -> None:
    margins = [0.1, 0.1, -2.0, 4.0, 4.0, 4.0]  # one verdict the wrong way round, or a model that is too sure
    found = fit_temperature(margins, noise=0.05)
    tried = [negative_log_likelihood(margins, tau, noise=0.05) for tau in np.geomspace(*TEMPERATURE_RANGE, 500)]
    assert tried[0] < tried[20]  # the end of the range is the other hollow
    assert negative_log_likelihood(margins, found, noise=0.05) <= min(tried)

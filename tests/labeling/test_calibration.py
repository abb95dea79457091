"""Accuracy and temperature of a reward model on held-out pairs."""

import numpy as np
import pytest

from sail.labeling.calibration import TEMPERATURE_RANGE, accuracy, fit_temperature, negative_log_likelihood


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

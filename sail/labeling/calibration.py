"""How far a reward model can be trusted: accuracy and temperature on pairs it was not fitted to."""

from collections.abc import Sequence

import numpy as np

TEMPERATURE_RANGE = (0.05, 20.0)
"""Beyond it the holdout says 'as sharp (or as flat) as you like': no finite optimum, or next to none."""


def accuracy(margins: Sequence[float]) -> float:
    """Share of pairs with r_chosen > r_rejected; an equal pair counts half. margins: r_chosen - r_rejected, [P]."""
    signs_P = np.sign(np.asarray(margins, dtype=np.float64))
    return float((signs_P + 1).mean() / 2)


def negative_log_likelihood(margins: Sequence[float], temperature: float) -> float:
    """mean -log sigmoid(margin / temperature), nats a pair."""
    return float(np.logaddexp(0.0, -np.asarray(margins, dtype=np.float64) / temperature).mean())


def fit_temperature(margins: Sequence[float]) -> float:
    """The tau that minimises negative_log_likelihood (Guo et al. 2017, 1706.04599), within TEMPERATURE_RANGE.

    The likelihood is concave in 1/tau, so its slope  mean(margin * sigmoid(-margin / tau))  is bisected.
    """
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(margins, middle) > 0 else (low, middle)
    return 2 / (low + high)


def _slope(margins: Sequence[float], inverse: float) -> float:
    margins_P = np.asarray(margins, dtype=np.float64)
    return float((margins_P * np.exp(-np.logaddexp(0.0, margins_P * inverse))).mean())

"""How far a reward model can be trusted: accuracy and temperature on pairs it was not fitted to.

margins: d = r_chosen - r_rejected, [P]. p: P(chosen beats rejected) as the data says, [P], each in [1/2, 1]; left out,
every chosen response won.
"""

from collections.abc import Sequence

import numpy as np

from sail.labeling.label_figures import calibration_error, reliability

TEMPERATURE_RANGE = (0.05, 20.0)
"""Beyond it the holdout says 'as sharp (or as flat) as you like': no finite optimum, or next to none."""


def accuracy(margins: Sequence[float], p: Sequence[float] | None = None) -> float | None:
    """Share of pairs with r_chosen > r_rejected; equal rewards count half, ties of the data (p = 1/2) are left out.

    None where the data has nothing but ties.
    """
    margins_P, p_P = _arrays(margins, p)
    signs = np.sign(margins_P[p_P > 0.5])
    return float((signs + 1).mean() / 2) if len(signs) else None


def negative_log_likelihood(margins: Sequence[float], temperature: float, p: Sequence[float] | None = None) -> float:
    """mean -p log q - (1 - p) log(1 - q), q = sigmoid(d / temperature), nats a pair."""
    margins_P, p_P = _arrays(margins, p)
    x_P = margins_P / temperature
    return float((p_P * np.logaddexp(0.0, -x_P) + (1 - p_P) * np.logaddexp(0.0, x_P)).mean())


def fit_temperature(margins: Sequence[float], p: Sequence[float] | None = None) -> float:
    """The tau that minimises negative_log_likelihood (Guo et al. 2017, 1706.04599), within TEMPERATURE_RANGE.

    The likelihood is concave in 1/tau, so its slope  mean d (p - sigmoid(d / tau))  is bisected.
    """
    margins_P, p_P = _arrays(margins, p)
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((margins_P * (p_P - _sigmoid(margins_P * middle))).mean())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return 2 / (low + high)


def expected_calibration_error(
    margins: Sequence[float], temperature: float, p: Sequence[float] | None = None
) -> float | None:
    """ECE of q = sigmoid(d / temperature) against p, in [0, 1]; None without pairs."""
    margins_P, p_P = _arrays(margins, p)
    return calibration_error(reliability(_sigmoid(margins_P / temperature).tolist(), p_P.tolist()))


def _arrays(margins: Sequence[float], p: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    margins_P = np.asarray(margins, dtype=np.float64)
    return margins_P, np.ones_like(margins_P) if p is None else np.asarray(p, dtype=np.float64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))

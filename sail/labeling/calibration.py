"""How far a reward model can be trusted: accuracy and temperature on pairs it was not fitted to.

margins: d = r_chosen - r_rejected, [P]. p: P(chosen beats rejected) as the data says, [P], each in [1/2, 1]; left out,
every chosen response won. noise: e in [0, 1/2), the known share of verdicts that are the wrong way round. Verdicts are
compared with what the model expects to see of them, so that tau is that of the true preference:

    q = sigmoid(d / tau), seen = (1 - e) q + e (1 - q)
"""

import math
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


def negative_log_likelihood(
    margins: Sequence[float], temperature: float, p: Sequence[float] | None = None, *, noise: float = 0.0
) -> float:
    """mean -p log(seen) - (1 - p) log(1 - seen), nats a pair."""
    margins_P, p_P = _arrays(margins, p)
    x_P = margins_P / temperature
    return float(-(p_P * _log_seen(x_P, noise) + (1 - p_P) * _log_seen(-x_P, noise)).mean())


def fit_temperature(margins: Sequence[float], p: Sequence[float] | None = None, *, noise: float = 0.0) -> float:
    """The tau that minimises negative_log_likelihood (Guo et al. 2017, 1706.04599), within TEMPERATURE_RANGE.

    Without noise the likelihood is concave in 1/tau; with it it need not be, so the slope is bisected around the best
    of a grid.
    """
    margins_P, p_P = _arrays(margins, p)
    grid = np.geomspace(1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0], 200)
    best = int(np.argmin([negative_log_likelihood(margins, 1 / inverse, p, noise=noise) for inverse in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(margins_P, middle, p_P, noise) > 0 else (low, middle)
    return 2 / (low + high)


def expected_calibration_error(
    margins: Sequence[float], temperature: float, p: Sequence[float] | None = None, *, noise: float = 0.0
) -> float | None:
    """ECE of `seen` against p, in [0, 1]; None without pairs."""
    margins_P, p_P = _arrays(margins, p)
    seen_P = np.exp(_log_seen(margins_P / temperature, noise))
    return calibration_error(reliability(seen_P.tolist(), p_P.tolist()))


def _slope(margins_P: np.ndarray, inverse: float, p_P: np.ndarray, noise: float) -> float:
    """Of the mean log-likelihood in 1/tau: mean d (true - q), true = P(chosen is better given d and the verdict)."""
    x_P = margins_P * inverse
    log_q_P, log_e = _log_sigmoid(x_P), math.log(noise) if noise else -math.inf
    true_P = p_P * np.exp(math.log1p(-noise) + log_q_P - _log_seen(x_P, noise))
    true_P = true_P + (1 - p_P) * np.exp(log_e + log_q_P - _log_seen(-x_P, noise))
    return float((margins_P * (true_P - np.exp(log_q_P))).mean())


def _arrays(margins: Sequence[float], p: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    margins_P = np.asarray(margins, dtype=np.float64)
    return margins_P, np.ones_like(margins_P) if p is None else np.asarray(p, dtype=np.float64)


def _log_seen(x: np.ndarray, noise: float) -> np.ndarray:
    """log((1 - e) sigmoid(x) + e sigmoid(-x))"""
    if noise == 0.0:
        return _log_sigmoid(x)
    return np.logaddexp(math.log1p(-noise) + _log_sigmoid(x), math.log(noise) + _log_sigmoid(-x))


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)

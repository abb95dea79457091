"""The figures of all seeds as Markdown."""

import math
import statistics
from collections.abc import Callable, Sequence

from sail.evaluation.numerals import number, with_error
from scripts.variance.measure import ESTIMATORS, TERMS, Figures, Measured

_ROUNDING = 1e-9  # of float32: the plain term of soft labels is exactly 0
Column = Callable[[Figures, Measured], float]


def variance_table(seeds: Sequence[Measured]) -> str:
    """A row an estimator, in units of the exact gradient's squared norm (bias: of its norm); mean ± standard error."""
    columns = _columns(list(seeds[0].signal))
    lines = ["| " + " | ".join(["Labels", "Baseline", *columns]) + " |", "| --- | --- |" + " ---: |" * len(columns)]
    for mode, based in ESTIMATORS:
        cells = [_cell([column(seed.figures[mode, based], seed) for seed in seeds]) for column in columns.values()]
        lines.append("| " + " | ".join([mode, "running mean" if based else "none", *cells]) + " |")
    return "\n".join(lines)


def _columns(coefs: Sequence[float]) -> dict[str, Column]:
    variances: dict[str, Column] = {
        f"Variance, c = {c:g}": lambda own, seed, c=c: _over(own.variance[c], seed.signal[c]) for c in coefs
    }
    terms: dict[str, Column] = {
        name.capitalize(): lambda own, seed, name=name: _over(own.terms[name], seed.signal[1.0]) for name in TERMS
    }
    biases: dict[str, Column] = {
        f"Bias, c = {c:g}": lambda own, seed, c=c: _over(max(own.bias[c], 0.0), seed.signal[c]) ** 0.5 for c in coefs
    }
    return variances | (terms if 1.0 in coefs else {}) | biases


def _over(value: float, signal: float) -> float:
    """nan where too few batches leave no signal"""
    return value / signal if signal > 0 else math.nan


def _cell(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if mean < _ROUNDING:
        return "0"
    if len(values) == 1:
        return number(mean)
    return with_error(mean, statistics.stdev(values) / len(values) ** 0.5)

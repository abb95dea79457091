"""The figures of all seeds as Markdown."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from sail.evaluation.numerals import number, with_error
from scripts.variance.measure import ESTIMATORS, EXACT, TERMS, Figures, Measured

_ROUNDING = 1e-9  # of float32: the plain term of soft labels is exactly 0
Column = Callable[[Figures, Measured], float]


def variance_tables(seeds: Sequence[Measured]) -> str:
    """Whole gradients, then their terms: a row an estimator, mean ± standard error over seeds.

    Variances and squared biases are in units of the exact gradient's squared norm under that seed, "of soft's" in units
    of the variance of the exact estimator under that seed.
    """
    wholes: dict[str, Column] = {}
    for c in seeds[0].signal:
        wholes |= {
            f"Variance, c = {c:g}": lambda own, seed, c=c: _over(own.variance[c], seed.signal[c]),
            f"of soft's, c = {c:g}": lambda own, seed, c=c: own.variance[c] / seed.figures[EXACT].variance[c],
            f"Bias², c = {c:g}": lambda own, seed, c=c: _over(own.bias[c], seed.signal[c]),
        }
    terms: dict[str, Column] = {
        f"{name.capitalize()}, c = 1": lambda own, seed, name=name: _over(own.terms[name], seed.signal[1.0])
        for name in TERMS
    }
    return "\n\n".join(_table(columns, seeds) for columns in (wholes, terms))


def _table(columns: Mapping[str, Column], seeds: Sequence[Measured]) -> str:
    lines = ["| " + " | ".join(["Labels", "Baseline", *columns]) + " |", "| --- | --- |" + " ---: |" * len(columns)]
    for mode, based in ESTIMATORS:
        cells = [_cell([column(seed.figures[mode, based], seed) for seed in seeds]) for column in columns.values()]
        lines.append("| " + " | ".join([mode, "running mean" if based else "none", *cells]) + " |")
    return "\n".join(lines)


def _over(value: float, signal: float) -> float:
    """nan where too few batches leave no signal"""
    return value / signal if signal > 0 else math.nan


def _cell(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if abs(mean) < _ROUNDING:
        return "0"
    if len(values) == 1 or len(set(values)) == 1:
        return number(mean)
    return with_error(mean, statistics.stdev(values) / len(values) ** 0.5)

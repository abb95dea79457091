"""One seed's figures: variance and bias of every label mode, with and without a baseline, on the same batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sail.core.records import LabelMode
from sail.update.items import Item
from scripts.variance.gradients import MODES, Stepper, Terms
from scripts.variance.moments import Moments
from scripts.variance.samples import FreshPairs

Estimator = tuple[LabelMode, bool]
"""label mode, with the running mean as baseline or with none"""
ESTIMATORS: tuple[Estimator, ...] = tuple((mode, based) for mode in MODES for based in (False, True))
EXACT: Estimator = ("soft", True)  # of those whose mean is the exact gradient, the least noisy
TERMS = ("plain", "label", "score")


@dataclass(frozen=True)
class Figures:
    """Of one estimator and seed. A variance is the trace of the covariance of one batch's gradient."""

    terms: Mapping[str, float]  # variances of plain, label and score, at c = 1
    variance: Mapping[float, float]  # c -> of the whole gradient
    bias: Mapping[float, float]  # c -> ||its mean - the exact one||^2, unbiased: below 0 by chance where there is none


@dataclass(frozen=True)
class Measured:
    """One seed. Whoever compares seeds divides by the signal."""

    figures: Mapping[Estimator, Figures]
    signal: Mapping[float, float]  # c -> ||the exact gradient||^2, unbiased


def measure(pairs: FreshPairs, batch_size: int, num_settling: int, coefs: Sequence[float]) -> Measured:
    """Batches of different prompts; the first `num_settling` settle the baseline, the others are measured."""
    stepper, batches = Stepper(pairs), whole_batches(pairs.items, batch_size)
    baseline = stepper.settled_baseline(batches[:num_settling])
    moments = {estimator: _Moments(coefs) for estimator in ESTIMATORS}
    for items in batches[num_settling:]:
        terms = [each for mode in MODES for each in stepper.terms(items, mode, (0.0, baseline))]
        by_estimator = dict(zip(ESTIMATORS, terms, strict=True))
        for estimator, own in by_estimator.items():
            moments[estimator].add(own, by_estimator[EXACT])
    signal = {c: whole.squared_mean for c, whole in moments[EXACT].whole.items()}
    return Measured({estimator: own.figures() for estimator, own in moments.items()}, signal)


def whole_batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items) - size + 1, size)]


class _Moments:
    def __init__(self, coefs: Sequence[float]) -> None:
        self.terms = {name: Moments() for name in TERMS}
        self.whole = {c: Moments() for c in coefs}
        self.apart = {c: Moments() for c in coefs}  # from the exact estimator, on the same batch

    def add(self, own: Terms, exact: Terms) -> None:
        for name, term in self.terms.items():
            term.add(getattr(own, name))
        for c in self.whole:
            self.whole[c].add(own.at(c))
            self.apart[c].add(own.at(c) - exact.at(c))

    def figures(self) -> Figures:
        return Figures(
            {name: term.variance for name, term in self.terms.items()},
            {c: whole.variance for c, whole in self.whole.items()},
            {c: apart.squared_mean for c, apart in self.apart.items()},
        )

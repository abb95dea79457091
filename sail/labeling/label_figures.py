"""Figures of labels: how sure, how long the winners, how far apart, and how well two labelers agree."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sail.core.records import PreferencePair, Verdict

_QUANTILES = (10, 50, 90)


def label_figures(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """What every pairs manifest says of its labels (names of sail.core.metrics); labels by others alone."""
    given = [pair for pair in pairs if pair.source == "others"]
    if not given:
        return {}
    found = {"quality/confidence": float(np.mean([abs(2 * pair.p_a - 1) for pair in given]))}
    sides = [_winner_is_longer(pair) for pair in given if pair.p_a != 0.5 and pair.length_a != pair.length_b]
    if sides:
        found["quality/longer_wins"] = sum(sides) / len(sides)
    margins = [abs(p.score_a - p.score_b) for p in given if p.score_a is not None and p.score_b is not None]
    if margins:
        values = np.quantile(margins, [q / 100 for q in _QUANTILES]).tolist()
        found |= {f"quality/margin_p{q}": value for q, value in zip(_QUANTILES, values, strict=True)}
    return found


def _winner_is_longer(pair: PreferencePair) -> bool:
    return (pair.p_a > 0.5) == (pair.length_a > pair.length_b)


class Agreement(NamedTuple):
    """Two labelers on the pairs that both decided (A, B or tie); None where there is none such."""

    num_pairs: int
    raw: float | None  # share of the same verdict
    kappa: float | None  # Cohen 1960: (raw - expected) / (1 - expected)
    flips: float | None  # share of opposite winners


def agreement(one: Sequence[Verdict], other: Sequence[Verdict]) -> Agreement:
    """Of verdicts on the same pairs in the same order."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if {a, b} <= {"A", "B", "tie"}]
    if not both:
        return Agreement(0, None, None, None)
    size = len(both)
    raw = sum(a == b for a, b in both) / size
    flips = sum({a, b} == {"A", "B"} for a, b in both) / size
    ones, others = Counter(a for a, _ in both), Counter(b for _, b in both)
    expected = sum(ones[verdict] * others[verdict] for verdict in ones) / size**2
    return Agreement(size, raw, None if expected == 1 else (raw - expected) / (1 - expected), flips)


def agreement_matrix(verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, dict[str, Agreement]]:
    """labeler -> labeler -> their agreement, for every two of them."""
    matrix: dict[str, dict[str, Agreement]] = {name: {} for name in verdicts}
    for one, other in itertools.permutations(verdicts, 2):
        matrix[one][other] = agreement(verdicts[one], verdicts[other])
    return matrix


class ReliabilityBin(NamedTuple):
    """Labels of similar confidence: how sure they were, how often they were right."""

    confidence: float
    accuracy: float
    num_pairs: int


def reliability(p_a: Sequence[float], truth_a: Sequence[float], num_bins: int = 10) -> list[ReliabilityBin]:
    """Labels p against the truth in bins of equal width over confidence max(p, 1 - p), from .5 to 1; none empty.

    truth_a: P(A wins) by whom one believes, 0, 1/2 or 1. A label of exactly 1/2 is right half the time.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for p, truth in zip(p_a, truth_a, strict=True):
        confidence, right = max(p, 1 - p), (truth if p > 0.5 else 1 - truth if p < 0.5 else 0.5)
        place = min(int((confidence - 0.5) * 2 * num_bins), num_bins - 1)
        bins.setdefault(place, []).append((confidence, right))
    return [
        ReliabilityBin(
            sum(c for c, _ in entries) / len(entries), sum(r for _, r in entries) / len(entries), len(entries)
        )
        for _, entries in sorted(bins.items())
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float | None:
    """ECE = sum over bins of n_b / n |accuracy - confidence| (Naeini et al. 2015; Guo et al. 1706.04599)."""
    total = sum(one.num_pairs for one in bins)
    return sum(one.num_pairs * abs(one.accuracy - one.confidence) for one in bins) / total if total else None

"""What must hold. A bar on a figure that was not taken is "not measured", never passed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scripts.bench.measure import Figures
from scripts.bench.timing import Interval, median_interval, ratio

Verdict = Literal["passed", "failed", "inconclusive", "not measured"]


@dataclass(frozen=True)
class Bar:
    """A figure of one case with what it must reach; `figure` returns None where it was not taken."""

    case: str
    about: str
    at_least: bool
    required: float
    stretch: float | None
    figure: Callable[[Figures], Interval | None]

    def verdict(self, figures: Figures) -> Verdict:
        value = self.figure(figures)
        if value is None:
            return "not measured"
        if not value.conclusive:
            return "inconclusive"
        return "passed" if self._reached(value) else "failed"

    def _reached(self, value: Interval) -> bool:
        """By the interval's unfavourable end."""
        return value.low >= self.required if self.at_least else value.high <= self.required


def _speed(slow: str, fast: str) -> Callable[[Figures], Interval | None]:
    def figure(figures: Figures) -> Interval | None:
        if slow not in figures.seconds:
            return None
        return ratio(figures.seconds[slow], figures.seconds[fast])

    return figure


def _memory(own: str, other: str) -> Callable[[Figures], Interval | None]:
    def figure(figures: Figures) -> Interval | None:
        peaks = figures.peak_mb
        return _point(peaks[own] / peaks[other]) if own in peaks and other in peaks else None

    return figure


def _mfu(figures: Figures) -> Interval | None:
    work, steps = figures.flops["reference in the loop"], figures.seconds["ours"]
    return median_interval([f / step.own / figures.matmul_rate for f, step in zip(work, steps, strict=True)])


def _sail(figures: Figures) -> Interval | None:
    if not figures.sail:
        return None
    return ratio(figures.sail["ours, SAIL"], figures.sail["ours, stored reference"])


def _deviation(figures: Figures) -> Interval | None:
    return _point(max(figures.deviations["ours"]))


def _gradient_beside_trl(figures: Figures) -> Interval | None:
    if "trl" not in figures.deviations:
        return None
    return _point(figures.deviations["ours"].gradient / figures.deviations["trl"].gradient)


def _point(value: float) -> Interval:
    return Interval(value, value, value)


_STORED = ("trl, stored reference", "ours, stored reference")
_SMALL, _LARGE = "v8k/ragged", "v64k/ragged"

BARS = (
    Bar(_SMALL, "time, TRL / ours", True, 2.8, 3.3, _speed("trl", "ours")),
    Bar(_SMALL, "time, TRL / ours, reference stored", True, 2.3, 2.8, _speed(*_STORED)),
    Bar(_SMALL, "time, TRL with checkpointing (its default) / ours", True, 3.0, 3.6,
        _speed("trl, checkpointing", "ours")),
    Bar(_SMALL, "time, naive / ours", True, 1.9, 2.4, _speed("naive", "ours")),
    Bar(_SMALL, "time, microbatches of 2 / one pass", False, 1.05, None, _speed("ours, microbatches of 2", "ours")),
    Bar(_SMALL, "activation peak, ours / TRL", False, 0.38, 0.30, _memory("ours", "trl")),
    Bar(_SMALL, "activation peak, ours in microbatches of 2 / TRL", False, 0.18, 0.12,
        _memory("ours, microbatches of 2", "trl")),
    Bar(_SMALL, "time, SAIL / DPO", False, 1.02, 1.01, _sail),
    Bar(_SMALL, "MFU", True, 0.65, 0.80, _mfu),
    Bar(_SMALL, "loss and gradient against float64", False, 1e-5, 2e-6, _deviation),
    Bar(_SMALL, "gradient error, ours / TRL", False, 1.0, None, _gradient_beside_trl),
    Bar(_LARGE, "time, TRL / ours", True, 3.5, 5.0, _speed("trl", "ours")),
    Bar(_LARGE, "activation peak, ours / TRL", False, 0.20, 0.12, _memory("ours", "trl")),
    Bar(_LARGE, "activation peak, ours / naive", False, 0.30, 0.18, _memory("ours", "naive")),
    Bar(_LARGE, "MFU", True, 0.55, 0.70, _mfu),
    Bar(_LARGE, "loss and gradient against float64", False, 1e-5, 2e-6, _deviation),
    Bar(_LARGE, "gradient error, ours / TRL", False, 1.0, None, _gradient_beside_trl),
)  # fmt: skip


def bars_of(figures: Figures) -> list[Bar]:
    """Bars are set for CPU, float32 and the shapes they name; other runs have none."""
    case = figures.case
    return [bar for bar in BARS if bar.case == case.name and (case.device, case.dtype) == ("cpu", "fp32")]

"""Figures with one point an optimizer step, all rounds after one another."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from sail.core.metrics import METRICS
from sail.evaluation.svg import ACCENT, GRID, MUTED, Panel, panel

_TITLES = {
    "loss": "Loss",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Reward accuracy in training",
    "sail/score_to_plain_ratio": "Score term against plain term",
    "policy/entropy": "Entropy, nats a token",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
}
_EXACT = ("learning_rate",)  # a schedule, nothing to average
_MAX_POINTS = 240
_SMOOTH_FROM = 40


class StepAxis(NamedTuple):
    """Global steps of the logged lines, and the global step after which each round but the last ended."""

    steps: np.ndarray
    boundaries: list[int]


def step_panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A figure for each metric of _TITLES that some line has."""
    axis = running_steps(lines)
    return [
        _curve(lines, axis, metric, title) for metric, title in _TITLES.items() if any(metric in line for line in lines)
    ]


def running_steps(lines: Sequence[Mapping[str, Any]]) -> StepAxis:
    """Steps that go on from round to round; lines count them from 1 in every round of every phase."""
    steps, boundaries, before, last = [], [], 0, 0
    place: tuple[Any, Any] | None = None
    for line in lines:
        here = (line.get("phase"), line.get("round"))
        if place is not None and here != place:
            before += last
            boundaries.append(before)
        place, last = here, int(line["step"])
        steps.append(before + last)
    return StepAxis(np.array(steps, dtype=np.int64), boundaries)


def averaged(values: np.ndarray, bins: int) -> np.ndarray:
    """Means over `bins` runs of neighbours of nearly equal length; shorter input comes back as it is."""
    if len(values) <= bins:
        return values
    return np.array([part.mean() for part in np.array_split(values, bins)])


def _curve(lines: Sequence[Mapping[str, Any]], axis: StepAxis, metric: str, title: str) -> Panel:
    kept = [index for index, line in enumerate(lines) if metric in line]
    values = np.array([float(lines[index][metric]) for index in kept])
    steps = axis.steps[kept].astype(np.float64)

    def plot(axes: Axes) -> None:
        thinned = averaged(steps, _MAX_POINTS), averaged(values, _MAX_POINTS)
        for boundary in axis.boundaries:
            axes.axvline(boundary + 0.5, color=GRID, linewidth=1.0)
        if len(values) < _SMOOTH_FROM or metric in _EXACT:
            axes.plot(*thinned, color=ACCENT, marker="o" if len(values) < 3 else "")
        else:
            axes.plot(*thinned, color=MUTED, alpha=0.45, linewidth=0.8)
            axes.plot(averaged(steps, _SMOOTH_FROM), averaged(values, _SMOOTH_FROM), color=ACCENT)
        axes.set_xlabel("optimizer step")

    return panel(title, METRICS[metric], plot)

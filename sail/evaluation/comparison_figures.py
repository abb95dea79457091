"""Figures of a comparison: differences with their intervals, reward against KL, reward by round, every seed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from sail.evaluation.comparison import ArmResults, Comparison, estimate
from sail.evaluation.svg import ACCENT, INK, MUTED, SERIES, Panel, panel

_WIDE_IN = 5.0


def comparison_panels(comparison: Comparison) -> list[Panel]:
    """Every figure that the metrics allow."""
    drawn = (_differences(comparison), _seeds(comparison), _frontier(comparison), _by_round(comparison))
    return [figure for figure in drawn if figure is not None]


def _differences(comparison: Comparison) -> Panel | None:
    """A row an arm: the mean paired difference of the reward and its interval."""
    found = {arm.arm: estimate(list(comparison.differences(arm, "eval/reward").values())) for arm in comparison.arms}
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        return None

    def plot(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        for place, one in enumerate(known.values()):
            reach = 0.0 if one.high is None else one.high - one.mean
            axes.errorbar([one.mean], [place], xerr=[reach], fmt="o", color=ACCENT, elinewidth=1.4)
        _name_rows(axes, list(known))

    caption = f"paired by seed; bars: 95 % t interval; right is better than {comparison.compare_to}"
    return panel(f"Reward minus that of {comparison.compare_to}", caption, plot, _size(len(known)))


def _seeds(comparison: Comparison) -> Panel | None:
    """A row an arm: the reward under every seed, and the mean."""
    values = {arm.arm: comparison.values(arm, "eval/reward") for arm in comparison.arms}
    known = {name: list(by_seed.values()) for name, by_seed in values.items() if by_seed}
    if not known:
        return None

    def plot(axes: Axes) -> None:
        for place, rewards in enumerate(known.values()):
            axes.plot(rewards, [place] * len(rewards), "o", color=MUTED, markersize=3.0)
            axes.plot([np.mean(rewards)], [place], "|", color=ACCENT, markersize=12, markeredgewidth=2.0)
        _name_rows(axes, list(known))

    return panel("Reward, every seed", "points: seeds; strokes: their mean", plot, _size(len(known)))


def _frontier(comparison: Comparison) -> Panel | None:
    """A path an arm: mean reward against mean KL, evaluation by evaluation."""
    paths = {arm.arm: mean_path(arm) for arm in comparison.arms}
    known = {name: path for name, path in paths.items() if path}
    if not known:
        return None

    def plot(axes: Axes) -> None:
        for place, (name, path) in enumerate(known.items()):
            kls, rewards = zip(*path, strict=True)
            axes.plot(kls, rewards, "o-", color=SERIES[place % len(SERIES)], markersize=3.0, linewidth=1.1)
            axes.annotate(name, path[-1], xytext=(5, -3), textcoords="offset points", color=INK, fontsize=7)
        axes.margins(x=0.2, y=0.1)
        axes.set_xlabel("KL to the reference, nats a sequence")

    return panel("Reward against KL", "means over seeds, a point an evaluation; up is better", plot, _size(8))


def mean_path(arm: ArmResults) -> list[tuple[float, float]]:
    """(KL, reward) of each evaluation that every seed has, meaned over seeds."""
    turns = zip(*arm.rounds.values(), strict=False)
    known = [turn for turn in turns if all({"eval/reward", "objective/kl"} <= metrics.keys() for metrics in turn)]
    return [
        (float(np.mean([m["objective/kl"] for m in turn])), float(np.mean([m["eval/reward"] for m in turn])))
        for turn in known
    ]


def _by_round(comparison: Comparison) -> Panel | None:
    paths = {arm.arm: [reward for _, reward in mean_path(arm)] for arm in comparison.arms}
    if max((len(path) for path in paths.values()), default=0) < 2:
        return None

    def plot(axes: Axes) -> None:
        for place, (name, rewards) in enumerate(paths.items()):
            if rewards:
                axes.plot(range(len(rewards)), rewards, "o-", color=SERIES[place % len(SERIES)], markersize=3.0)
                last = (len(rewards) - 1, rewards[-1])
                axes.annotate(name, last, xytext=(5, -3), textcoords="offset points", color=INK, fontsize=7)
        axes.margins(x=0.25)
        axes.set_xticks(range(max(map(len, paths.values()))))
        axes.set_xlabel("evaluation")

    return panel("Reward by evaluation", "means over seeds, from the first evaluation to the last", plot, _size(8))


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)


def _size(rows: int) -> tuple[float, float]:
    return _WIDE_IN, 0.9 + 0.26 * max(rows, 3)

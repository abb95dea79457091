"""The figure of label counts: pairs kept, and what was dropped for which reason."""

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes

from sail.core.metrics import METRICS
from sail.evaluation.rounds import RoundRow, points, round_labels
from sail.evaluation.svg import ACCENT, PAPER, SERIES, Panel, label_rounds, panel

_DROPPED = tuple(name for name in METRICS if name.startswith("labels/dropped_"))


def label_panel(rows: Sequence[RoundRow]) -> Panel | None:
    """Bars by round; None for a run without labels."""
    kept_x, kept = points(rows, "labels/pairs")
    dropped = {name: dict(zip(*points(rows, name), strict=True)) for name in _DROPPED}
    dropped = {name: counts for name, counts in dropped.items() if any(counts.values())}
    if not kept_x and not dropped:
        return None

    def plot(axes: Axes) -> None:
        axes.bar([x - 0.2 for x in kept_x], kept, width=0.34, color=ACCENT, label="pairs kept")
        floor = dict.fromkeys(range(len(rows)), 0.0)
        for (name, counts), color in zip(dropped.items(), cycle(SERIES[1:]), strict=False):
            places, heights = list(counts), list(counts.values())
            bottoms = [floor[place] for place in places]
            reason = f"dropped: {name.removeprefix('labels/dropped_')}"
            axes.bar([x + 0.2 for x in places], heights, 0.34, bottoms, color=color, label=reason, edgecolor=PAPER)
            floor |= {place: bottom + height for place, bottom, height in zip(places, bottoms, heights, strict=True)}
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handlelength=0.9, columnspacing=1.1)
        label_rounds(axes, round_labels(rows))

    return panel("Labels", "pairs that reached the update; truncated and empty count samples, the rest pairs", plot)

"""Figures with one point a round: reward, win rate, divergence, accuracies, length, collapse, labels."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from sail.evaluation.label_figure import label_panel
from sail.evaluation.rounds import RoundRow, points, round_labels
from sail.evaluation.svg import ACCENT, INK, MUTED, SERIES, Panel, label_rounds, panel

_AGREEMENT = "quality/agreement/"


def round_panels(rows: Sequence[RoundRow]) -> list[Panel]:
    """Every figure its metrics allow; none for a run without rounds."""
    drawn = (
        _reward(rows),
        _frontier(rows),
        _win_rate(rows),
        _lines(rows, "Implicit reward accuracy", "share of pairs the policy orders like their labels", {
            "rewards/accuracies_online": "on-policy", "rewards/accuracies_offline": "dataset",
        }, chance=0.5),
        _lines(rows, "Length", "mean tokens of a response, EOS included", {"completions/mean_length": ""}),
        _lines(rows, "Endings and variety", "shares of the samples; falling lines are a sign of collapse", {
            "completions/eos_rate": "ended by EOS", "completions/distinct_share": "distinct",
        }, limits=(0.0, 1.04)),
        label_panel(rows),
        _lines(rows, "The judge", "shares of pairs; half for the first shown is no position bias", {
            "judge/first_share": "first shown wins", "judge/order_flips": "flipped by the order",
            "judge/tie_share": "ties", "judge/error_share": "errors",
        }, limits=(-0.02, 1.04)),
        _lines(rows, "Certainty and length of labels", "mean |2p - 1|; how often the longer one wins", {
            "quality/confidence": "confidence", "quality/longer_wins": "longer wins",
        }, chance=0.5, limits=(-0.02, 1.04)),
        _lines(rows, "Agreement of labels", "share of pairs with the auditor's verdict", {
            name: name.removeprefix(_AGREEMENT) for row in rows for name in row.metrics if name.startswith(_AGREEMENT)
        }, limits=(-0.02, 1.04)),
    )  # fmt: skip
    others = [
        _lines(rows, f"Reward by {name.removeprefix('eval/reward/')}", "mean score of the same samples", {name: ""})
        for name in _further_scorers(rows)
    ]
    return [figure for figure in (*drawn, *others) if figure is not None]


def _further_scorers(rows: Sequence[RoundRow]) -> list[str]:
    """eval/reward/<scorer> of every scorer but the headline."""
    names = {name: None for row in rows for name in row.metrics if name.startswith("eval/reward/")}
    headline = points(rows, "eval/reward")
    return [name for name in names if points(rows, name) != headline]


def _reward(rows: Sequence[RoundRow]) -> Panel | None:
    x, y = points(rows, "eval/reward")
    if not x:
        return None
    errors = [rows[index].metrics.get("eval/reward_se", 0.0) for index in x]

    def plot(axes: Axes) -> None:
        axes.errorbar(x, y, yerr=errors, fmt="o-", color=ACCENT, elinewidth=1.2)
        label_rounds(axes, round_labels(rows))

    return panel("Reward by round", "mean held-out score by the headline scorer; bars: one standard error", plot)


def _frontier(rows: Sequence[RoundRow]) -> Panel | None:
    found = [index for index, row in enumerate(rows) if {"eval/reward", "objective/kl"} <= row.metrics.keys()]
    if not found:
        return None
    kls = [rows[index].metrics["objective/kl"] for index in found]
    rewards = [rows[index].metrics["eval/reward"] for index in found]
    labels = round_labels(rows)

    def plot(axes: Axes) -> None:
        axes.plot(kls, rewards, "-", color=MUTED, linewidth=1.0)
        axes.plot(kls, rewards, "o", color=ACCENT)
        for index, kl, reward in zip(found, kls, rewards, strict=True):
            axes.annotate(labels[index], (kl, reward), xytext=(5, -9), textcoords="offset points", color=INK)
        axes.margins(x=0.14, y=0.16)
        axes.set_xlabel("KL to the reference, nats a sequence")

    return panel("Reward against KL", "up is better, right is farther from the reference", plot)


def _win_rate(rows: Sequence[RoundRow]) -> Panel | None:
    x, y = points(rows, "eval/win_rate")
    if not x:
        return None
    lows = [rows[index].metrics.get("eval/win_rate_low", value) for index, value in zip(x, y, strict=True)]
    highs = [rows[index].metrics.get("eval/win_rate_high", value) for index, value in zip(x, y, strict=True)]

    def plot(axes: Axes) -> None:
        axes.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        below = [max(value - low, 0.0) for value, low in zip(y, lows, strict=True)]
        above = [max(high - value, 0.0) for value, high in zip(y, highs, strict=True)]
        axes.errorbar(x, y, yerr=[below, above], fmt="o", color=ACCENT, elinewidth=1.2)
        axes.set_ylim(min(0.4, *lows) - 0.02, 1.02)
        label_rounds(axes, round_labels(rows))

    return panel("Win rate against the start", "95 % bootstrap intervals over prompts; dashed: no difference", plot)


def _lines(
    rows: Sequence[RoundRow],
    title: str,
    caption: str,
    names: dict[str, str],
    *,
    chance: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Panel | None:
    """One line per metric that some round has; names: metric -> its name in the legend.

    chance: where a dashed line says "no better than chance"; limits: of the y axis.
    """
    series = {name: points(rows, name) for name in names}
    series = {name: points for name, points in series.items() if points[0]}
    if not series:
        return None

    def plot(axes: Axes) -> None:
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        for color, (name, (x, y)) in zip(SERIES, series.items(), strict=False):
            axes.plot(x, y, "o-", color=color, label=names[name] or None)
        if any(names[name] for name in series):
            axes.legend(loc="best", handlelength=1.2)
        axes.margins(y=0.15)
        if limits is not None:
            axes.set_ylim(*limits)
        label_rounds(axes, round_labels(rows))

    return panel(title, caption, plot)

"""Figures of the labels' quality: by round, and what the last audit found."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from sail.evaluation.svg import ACCENT, MUTED, SERIES, Panel, panel

Audit = Mapping[str, Any]
"""the content of an audit.json: agreement, reliability, margins"""


def audit_panels(audits: Mapping[str, Audit]) -> list[Panel]:
    """The panels of the last audit of each route; none where labels were not audited."""
    figures = [
        figure for route, audit in audits.items() for figure in (_reliability(route, audit), _margins(route, audit))
    ]
    return [figure for figure in figures if figure is not None]


def _reliability(route: str, audit: Audit) -> Panel | None:
    curves: Mapping[str, Sequence[Mapping[str, float]]] = audit["reliability"]
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return None

    def plot(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        for color, (name, curve) in zip(SERIES, curves.items(), strict=False):
            axes.plot(
                [one["confidence"] for one in curve], [one["accuracy"] for one in curve], "o-", color=color, label=name
            )
        axes.legend(loc="best", handlelength=1.2)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel("confidence of the label, max(p, 1 - p)")

    caption = "share of labels that the auditor confirms, last round; dashed: labels as sure as they are right"
    return panel(f"Reliability of labels, {route}", caption, plot)


def _margins(route: str, audit: Audit) -> Panel | None:
    edges, counts = audit["margins"]["edges"], audit["margins"]["counts"]
    if not counts:
        return None

    def plot(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=ACCENT)
        axes.set_xlabel("|score of A - score of B|")

    return panel(f"Score margins, {route}", "pairs of the last round by the difference of their scores", plot)

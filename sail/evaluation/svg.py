"""Figures as inline SVG that takes its colours from the page, so that one figure serves light and dark.

matplotlib draws with marker colours that stand for nothing but a name; they become CSS variables of the report.
"""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116")
ACCENT, SECOND = SERIES[0], SERIES[1]

_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
_VARIABLES = _NAMES | {color: f"series-{index}" for index, color in enumerate(SERIES)}
_SIZE_IN = (3.7, 2.25)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif", "font.size": 8.0,
    "text.color": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.edgecolor": GRID, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "xtick.major.size": 0.0, "ytick.major.size": 0.0, "xtick.major.pad": 5.0, "lines.linewidth": 1.6,
    "lines.markersize": 4.5, "legend.frameon": False, "legend.fontsize": 7.5, "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
}  # fmt: skip


LIGHT = {  # the light half of report.html.j2's palette, for files that have no page around them
    "ink": "#22262b", "muted": "#6b727a", "grid": "#e6e4de", "paper": "#fbfaf7", "series-0": "#1f6f8b",
    "series-1": "#c8803a", "series-2": "#7a8c4f", "series-3": "#9a6a8e", "series-4": "#8c8c86", "series-5": "#b5564e",
}  # fmt: skip


class Panel(NamedTuple):
    """One figure of the report."""

    title: str
    caption: str
    svg: str  # markup, safe to inline


def panel(title: str, caption: str, plot: Callable[[Axes], None], size_in: tuple[float, float] = _SIZE_IN) -> Panel:
    """Let `plot` draw on one small pair of axes and keep the result as markup."""
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text
        figure = Figure(figsize=size_in, layout="constrained")
        plot(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Panel(title, caption, _for_the_page(buffer.getvalue(), name, title))


def _for_the_page(svg: str, name: str, title: str) -> str:
    """No prolog or metadata, ids of its own, the page's width, and CSS variables for colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None, "matplotlib writes a viewBox"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view.group()}'
    svg = re.sub(r"<svg[^>]*>", f'{head} role="img" aria-label="{escape(title)}">', svg, count=1)
    for before in (' id="', 'xlink:href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg


def standalone(figure: Panel) -> str:
    """The figure as a file of its own: light colours on paper."""
    svg = re.sub(r"var\(--([\w-]+)\)", lambda name: LIGHT[name[1]], figure.svg)
    return re.sub(r"(<svg[^>]*>)", rf'\1<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>', svg, count=1)


def label_rounds(axes: Axes, labels: list[str]) -> None:
    """Rounds stand at 0, 1, ... on the x axis; of many, only some are named."""
    stride = 1 + (len(labels) - 1) // 12
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, len(labels), stride))))
    axes.set_xticklabels([_short(label) for label in labels[::stride]])
    axes.set_xlim(-0.5, max(len(labels) - 0.5, 0.5))


def _short(label: str, limit: int = 12) -> str:
    return label if len(label) <= limit else f"{label[: limit - 1]}…"

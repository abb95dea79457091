"""What a comparison leaves in its folder: tables as markdown and JSON, figures as SVG, and one HTML page of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sail.core.atomic import write_bytes, write_json
from sail.evaluation.comparison import Comparison, as_json
from sail.evaluation.comparison_figures import comparison_panels
from sail.evaluation.comparison_table import grids, markdown
from sail.evaluation.report import REPORT_FILE, render_page
from sail.evaluation.svg import standalone

RESULTS = "results"
_TEMPLATE = "comparison.html.j2"


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """A comparison and the sentences around it."""

    comparison: Comparison
    runs: Sequence[str]  # names of the folders beside the page
    asked: str  # the ablation as YAML
    alarms: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_comparison(folder: Path, page: ComparisonPage) -> Path:
    """Write results.json, results.md, results-1.svg ... and report.html; returns the path of the last."""
    write_json(folder / f"{RESULTS}.json", as_json(page.comparison))
    write_bytes(folder / f"{RESULTS}.md", markdown(page.comparison).encode())
    panels = comparison_panels(page.comparison)
    for index, figure in enumerate(panels, 1):
        write_bytes(folder / f"{RESULTS}-{index}.svg", standalone(figure).encode())
    html = render_page(_TEMPLATE, page=page, grids=grids(page.comparison), panels=panels)
    write_bytes(folder / REPORT_FILE, html.encode())
    return folder / REPORT_FILE

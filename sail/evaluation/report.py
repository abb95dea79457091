"""The report of a run: one HTML file without external parts, for light and dark, phone and desk.

Model text is untrusted: everything is escaped by the template, and the page's own policy forbids scripts.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from sail.core.atomic import write_bytes
from sail.core.metrics import METRICS
from sail.evaluation.alarms import alarms
from sail.evaluation.audit_figures import audit_panels
from sail.evaluation.numerals import number, share
from sail.evaluation.round_figures import round_panels
from sail.evaluation.rounds import COLUMNS, MISSING, ReportData, RoundRow, cells, round_labels
from sail.evaluation.step_figures import step_panels
from sail.evaluation.sweep import SWEEP_COLUMNS, sweep_cells, swept

__all__ = ["ReportData", "RoundRow", "write_report"]

REPORT_FILE = "report.html"
_TEMPLATE, _STYLE = "report.html.j2", "page.css"


class Tile(NamedTuple):
    """A headline figure: now, and where it came from."""

    name: str
    value: str
    detail: str


def write_report(run_folder: Path, report: ReportData) -> Path:
    """Write run_folder/report.html, at once or not at all, and return its path."""
    path = run_folder / REPORT_FILE
    write_bytes(path, render_report(report).encode())
    return path


def render_report(report: ReportData) -> str:
    """The page's HTML."""
    labels, sweep = round_labels(report.rounds), swept(report.rounds)
    return render_page(
        _TEMPLATE,
        report=report,
        tiles=headline_tiles(report.rounds),
        alarms=alarms(report.rounds),
        columns=COLUMNS,
        missing=MISSING,
        table=[(label, cells(row)) for label, row in zip(labels, report.rounds, strict=True)],
        sweep=None if sweep is None else (sweep[0], SWEEP_COLUMNS, sweep_cells(sweep[1])),
        round_panels=[*round_panels(report.rounds), *audit_panels(report.audits)],
        step_panels=step_panels(report.steps),
        lineage=[(label, row.artifacts) for label, row in zip(labels, report.rounds, strict=True) if row.artifacts],
        examples=_by_prompt(report.examples),
        metrics=METRICS,
    )


def render_page(template: str, **values: Any) -> str:
    """A template of this package with the common style; everything in `values` is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"number": number, "share": share}
    folder = files("sail.evaluation")
    source = folder.joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(style=folder.joinpath(_STYLE).read_text(encoding="utf-8"), **values)


def headline_tiles(rows: Sequence[RoundRow]) -> list[Tile]:
    """Where the last evaluated round stands: reward, win rate, KL and length, as far as they are known."""
    tiles = [
        _moved("Reward", "eval/reward", rows),
        _win_rate(rows),
        _moved("KL to the reference", "objective/kl", rows, unit=" nats"),
        _moved("Length", "completions/mean_length", rows, unit=" tokens"),
    ]
    return [tile for tile in tiles if tile is not None]


def _moved(name: str, metric: str, rows: Sequence[RoundRow], unit: str = "") -> Tile | None:
    values = [row.metrics[metric] for row in rows if metric in row.metrics]
    if not values:
        return None
    return Tile(name, f"{number(values[-1])}{unit}", f"from {number(values[0])}" if len(values) > 1 else "")


def _win_rate(rows: Sequence[RoundRow]) -> Tile | None:
    found = [row.metrics for row in rows if "eval/win_rate" in row.metrics]
    if not found:
        return None
    low, high = found[-1].get("eval/win_rate_low"), found[-1].get("eval/win_rate_high")
    detail = "against the start" if low is None or high is None else f"95 %: {share(low)} to {share(high)}"
    return Tile("Win rate", share(found[-1]["eval/win_rate"]), detail)


def _by_prompt(examples: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Entries of several rounds on one prompt stand together, prompts in their first order."""
    order = {prompt_id: place for place, prompt_id in enumerate(dict.fromkeys(e["prompt_id"] for e in examples))}
    ranked = sorted(examples, key=lambda example: order[example["prompt_id"]])
    return [list(entries) for _, entries in groupby(ranked, key=lambda example: example["prompt_id"])]

"""Figures as Markdown, and into a page between two marks."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from scripts.bench.bars import bars_of
from scripts.bench.measure import Figures
from scripts.bench.timing import Interval, ratio

BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"


def surroundings(command: str) -> str:
    """When, on what, with what: one paragraph."""
    packages = ("torch", "transformers", "trl")
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"thread, load averages {loads} at the end; Python {platform.python_version()}, {versions}.\n\n    {command}\n"
    )


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def case_table(figures: Figures) -> str:
    """A row a variant: seconds, speed-ups with their 95 % intervals, MFU, peak."""
    case, unit = figures.case, "CPU s" if figures.case.device == "cpu" else "s"
    num_rounds = len(figures.seconds["ours"])
    head = (
        f"**{case.name}**: {case.pairs} pairs, V {case.vocab:,}, H {case.hidden}, {case.layers} layers, {case.dtype}, "
        f"{num_rounds} rounds; best matrix product {figures.matmul_rate / 1e9:,.0f} GFLOP/s.\n\n"
        f"| Variant | {unit} a step | Faster than TRL | Faster than naive | MFU | Peak MB | of TRL's |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    names = [*figures.seconds, *(name for name in figures.peak_mb if name not in figures.seconds)]
    return head + "".join(_row(figures, name) for name in names)


def _row(figures: Figures, name: str) -> str:
    cells = [name, "-", "-", "-", "-", "-", "-"]
    if name in figures.seconds:
        steps = figures.seconds[name]
        cells[1] = f"{sorted(step.own for step in steps)[len(steps) // 2]:.2f}"
        cells[2] = _speed_up(figures, "trl, stored reference" if "stored" in name else "trl", name)
        cells[3] = _speed_up(figures, "naive", name)
        cells[4] = f"{figures.mfu(name):.0%}"
    if name in figures.peak_mb:
        cells[5] = f"{figures.peak_mb[name]:,.0f}"
        cells[6] = f"{figures.peak_mb[name] / figures.peak_mb['trl']:.2f}" if "trl" in figures.peak_mb else "-"
    return "| " + " | ".join(cells) + " |\n"


def _speed_up(figures: Figures, slow: str, name: str) -> str:
    if slow not in figures.seconds or slow == name:
        return "-"
    return written(ratio(figures.seconds[slow], figures.seconds[name]))


def written(value: Interval) -> str:
    """2.98 [2.89, 3.07]"""
    if value.low == value.high:
        return f"{value.median:.2g}" if value.median < 0.01 else f"{value.median:.2f}"
    return f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"


def bars_table(measured: Sequence[Figures]) -> str:
    lines = ["| Case | Bar | Required | Stretch | Measured | Verdict |\n| --- | --- | ---: | ---: | ---: | --- |\n"]
    for figures in measured:
        for bar in bars_of(figures):
            value, sign = bar.figure(figures), ">=" if bar.at_least else "<="
            stretch = f"{bar.stretch:g}" if bar.stretch is not None else "-"
            told = written(value) if value is not None else "-"
            lines.append(
                f"| {bar.case} | {bar.about} | {sign} {bar.required:g} | {stretch} | {told} "
                f"| {bar.verdict(figures)} |\n"
            )
    return "".join(lines)


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks called `name`."""
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"

"""Seconds of online rounds by stage, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence

from scripts.bench.online import Spent, Work
from scripts.bench.table import written
from scripts.bench.timing import median_interval

_STAGES = ("generation", "labels", "reference", "update")


def floor_line(work: Work, flops: Mapping[str, float], rate: float, shaped: Mapping[str, float]) -> str:
    """What the arithmetic alone takes: at the rate of the best matrix product, and at the shapes it comes in."""
    best = {stage: value / rate for stage, value in flops.items()}
    return (
        f"{work.num_prompts} prompts of {work.prompt_tokens} tokens, two samples of {work.new_tokens} each, "
        f"{work.num_steps} optimizer steps of {work.batch_size} pairs. Floor at {rate / 1e9:,.0f} GFLOP/s: "
        f"{_by_stage(best)}; the same products at their own shapes: {_by_stage(shaped)}.\n"
    )


def _by_stage(seconds: Mapping[str, float]) -> str:
    parts = ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
    return f"{sum(seconds.values()):.2f} CPU s ({parts})"


def most_line(trl: Sequence[Spent], shaped: Mapping[str, float]) -> str:
    """The largest ratio that could be reached by matrix products alone, nothing round them."""
    whole = statistics.median(run.cpu["whole"] for run in trl)
    return f"Products alone, at their own shapes, would be {whole / sum(shaped.values()):.2f} times as fast as TRL.\n"


def spent_table(spent: Mapping[str, Sequence[Spent]]) -> str:
    """Medians over rounds; "other" is what stands between the stages: the loop, commits, data."""
    lines = [
        "| System | CPU s | "
        + " | ".join(_STAGES)
        + " | other | Faster than TRL (CPU) | Wall s | Faster than TRL (wall) | Engine start, wall s |\n"
        "| --- |" + " ---: |" * 10 + "\n"
    ]
    return "".join([*lines, *(_row(name, runs, spent.get("trl")) for name, runs in spent.items())])


def _row(name: str, runs: Sequence[Spent], trl: Sequence[Spent] | None) -> str:
    stages = [statistics.median(run.cpu.get(stage, 0.0) for run in runs) for stage in _STAGES]
    whole = statistics.median(run.cpu["whole"] for run in runs)
    wall = statistics.median(run.wall["whole"] for run in runs)
    start = statistics.median(run.wall.get("engine start", 0.0) for run in runs)
    cells = [
        name, f"{whole:.2f}", *(f"{seconds:.2f}" for seconds in stages), f"{whole - sum(stages):.2f}",
        _faster(trl, runs, "cpu"), f"{wall:.2f}", _faster(trl, runs, "wall"), f"{start:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def _faster(trl: Sequence[Spent] | None, runs: Sequence[Spent], clock: str) -> str:
    if trl is None or trl is runs:
        return "-"
    ratios = [getattr(a, clock)["whole"] / getattr(b, clock)["whole"] for a, b in zip(trl, runs, strict=True)]
    return written(median_interval(ratios))

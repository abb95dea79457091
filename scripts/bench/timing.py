"""Paired times: all variants in one process on the same batch, the order reversed every other round."""

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from scripts.bench.cases import Pair
from scripts.bench.variants import Variant


class Seconds(NamedTuple):
    own: float  # CPU time of this process on a CPU; wall time on a GPU, which is what it costs there
    wall: float


class Interval(NamedTuple):
    """Median and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @property
    def conclusive(self) -> bool:
        return self.high - self.low <= 0.2 * self.median  # within 10 % to either side


def rounds(
    variants: dict[str, Variant], batches: Sequence[list[Pair]], device: str, say: Callable[[str], None]
) -> dict[str, list[Seconds]]:
    """Seconds of every step: one batch a round, after a step of every variant on the first batch's first pair."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in variants}
    for variant in variants.values():
        variant.step(batches[0][:1])
    for index, batch in enumerate(batches):
        for name in list(variants)[:: 1 if index % 2 == 0 else -1]:
            seconds[name].append(_timed(variants[name], batch, device))
        say(", ".join(f"{name} {steps[-1].own:.2f} s" for name, steps in seconds.items()))
    return seconds


def _timed(variant: Variant, batch: list[Pair], device: str) -> Seconds:
    wait_for(device)
    wall, own = time.perf_counter(), time.process_time()
    variant.step(batch)
    wait_for(device)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return Seconds(own if device == "cpu" else wall, wall)


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that other processes have taken so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def ratio(slow: Sequence[Seconds], fast: Sequence[Seconds]) -> Interval:
    """slow / fast, round by round."""
    return median_interval([a.own / b.own for a, b in zip(slow, fast, strict=True)])


def median_interval(values: Sequence[float], draws: int = 4000) -> Interval:
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    return Interval(statistics.median(values), medians[int(0.025 * draws)], medians[int(0.975 * draws)])

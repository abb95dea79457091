"""What a section tells its parent: a line of JSON a finding, at once, so that nothing is lost if it dies later."""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from sail.policy.devices import compute_device

Verdict = Literal["passed", "failed", "figure", "not measured"]
MARK = "finding: "


@dataclass(frozen=True)
class Finding:
    name: str
    verdict: Verdict
    figure: float | None = None
    limit: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Surroundings:
    """Where a section runs, and until when."""

    device: torch.device
    dry: bool
    deadline: float

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def time_left(self) -> float:
        return self.deadline - time.monotonic()


def surroundings() -> Surroundings:
    """From the command line: --dry (tiny sizes, the CPU), --seconds (how long the section may take)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--seconds", type=float, default=math.inf)
    arguments = parser.parse_args()
    device = torch.device("cpu") if arguments.dry else compute_device()
    return Surroundings(device, arguments.dry, time.monotonic() + arguments.seconds)


def at_most(name: str, figure: float, limit: float, note: str = "") -> None:
    """A check: passed where figure <= limit; a nan fails."""
    _tell(Finding(name, "passed" if figure <= limit else "failed", figure, limit, note=note))


def figure(name: str, value: float, unit: str = "", note: str = "") -> None:
    """A figure without a limit."""
    _tell(Finding(name, "figure", value, unit=unit, note=note))


def missing(name: str, why: str) -> None:
    _tell(Finding(name, "not measured", note=why))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """L2 distance over the L2 norm of the exact values."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def milliseconds(work: Callable[[], None], device: torch.device, repeats: int = 10) -> float:
    """Median wall time of work(), after two warm-up calls."""
    times = []
    for index in range(repeats + 2):
        _wait_for(device)
        start = time.perf_counter()
        work()
        _wait_for(device)
        if index >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _tell(finding: Finding) -> None:
    print(MARK + json.dumps(asdict(finding)), flush=True)

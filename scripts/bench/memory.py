"""Peak memory: one process a variant, what two steps add to everything that is resident."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from scripts.bench.cases import Case, make_model, make_pairs
from scripts.bench.variants import Builder, with_reference

ROOT = Path(__file__).resolve().parents[2]
# malloc returns what is freed; with its defaults the same variant moved by 15 to 40 %
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}


def peak_mb(case: Case, name: str) -> float:
    """In a process of its own."""
    command = [sys.executable, "-m", "scripts.bench.memory", name, json.dumps(asdict(case))]
    environment = os.environ | MALLOC | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(case: Case, build: Builder) -> float:
    """In this process: MB above weights, gradient, optimizer and reference, which a first small step brings in."""
    reference = make_model(case, 1)
    first, *batches = [with_reference(reference, make_pairs(case, seed=seed)) for seed in range(3)]
    del reference
    variant = build(case)
    variant.step(first[:1])
    resident = _resident_mb(case)
    for batch in batches:
        variant.step(batch)
    return _peak_mb(case) - resident


def _resident_mb(case: Case) -> float:
    if case.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return _status_mb("VmRSS")
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e6


def _peak_mb(case: Case) -> float:
    return _status_mb("VmHWM") if case.device == "cpu" else torch.cuda.max_memory_allocated() / 1e6


def _status_mb(field: str) -> float:
    """From the kernel's account of this process (getrusage would count the parent's memory at the fork)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def main() -> None:
    from scripts.bench.trl_variants import TRL
    from scripts.bench.variants import OURS

    torch.set_num_threads(1)
    name, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    print(measure(case, (OURS | TRL)[name]))


if __name__ == "__main__":
    main()

"""One run of one system in a process of its own: what a process sets (threads, how malloc works) is its own."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from scripts.bench.online import Spent, Work, ours, trl

ROOT = Path(__file__).resolve().parents[2]


def spent_by(system: str, model: Path, work: Work, folder: Path, threads: int) -> Spent:
    """The same work first, untimed: imports, first calls and memory's first use are not a round's. Then the run."""
    command = [
        sys.executable,
        "-m",
        "scripts.bench.online_run",
        system,
        str(model),
        json.dumps(asdict(work)),
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Spent(**json.loads(done.stdout.splitlines()[-1]))


def _run(system: str, model: Path, work: Work, folder: Path) -> Spent:
    if system.startswith("trl"):
        return trl(model, work, folder, checkpointing="checkpointing" in system)
    engine = "vllm" if "vLLM" in system else "transformers"
    return ours(model, work, folder, engine, fresh="one round" not in system)


def main() -> None:
    system, model, work, folder = sys.argv[1], Path(sys.argv[2]), Work(**json.loads(sys.argv[3])), Path(sys.argv[4])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _run(system.replace("vLLM", "transformers"), model, work, folder / "before")
    print(json.dumps(asdict(_run(system, model, work, folder / "whole"))))


if __name__ == "__main__":
    main()

"""Rounds on fresh samples, and on samples drawn while the round before trains, through one server that stays."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loops.config import resolve
from loops.context import Context, Engines
from loops.iterate import run_phases
from sail.core.store import StageEvent, Store
from scripts.bench.online import BETA, LEARNING_RATE, rewards
from scripts.bench.table import written
from scripts.bench.timing import median_interval


@dataclass(frozen=True)
class Load:
    """num_prompts a round, two samples each; every step passes the round's pairs once."""

    num_rounds: int = 4
    num_prompts: int = 32
    prompt_tokens: int = 30
    new_tokens: int = 64
    steps: int = 2


class Cores(NamedTuple):
    """Who may work where; the trainer computes with so many threads."""

    trainer: set[int]
    server: set[int]
    threads: int


@dataclass(frozen=True)
class Times:
    """Seconds of a run from its first sample to its last commit."""

    wall: float
    generation: Sequence[float]  # by round
    update: Sequence[float]

    @property
    def at_best(self) -> float:
        """Wall seconds if the shorter of an update and the generation that follows it took no time."""
        return self.wall - sum(map(min, self.generation[1:], self.update))


def settings(model: Path, data: Path, load: Load, staleness: int) -> Mapping[str, Any]:
    return {
        "model_name_or_path": str(model),
        "data": {"prompts": {"path": str(data)}},
        "labelers": {"rm": {"kind": "callable", "path": f"{rewards.__module__}:{rewards.__name__}"}},
        "prompts": {"from": "prompts", "per_round": load.num_prompts},
        "num_rounds": load.num_rounds,
        "routes": {"online": {"responses": "policy", "num_generations": 2, "labels": "rm"}},
        "loss": {"type": "dpo", "beta": BETA},
        "round": {"staleness": staleness},
        "update": {
            "steps": load.steps, "train_batch_size": load.num_prompts, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "warmup_ratio": 0.0,
        },
        "importance_sampling": {"mode": "truncate"},
        "generation": {"engine": "vllm", "max_completion_length": load.new_tokens},
        "hygiene": {"truncated": "keep"},
        "evaluation": {"num_prompts": 0},
        "vllm": {"kv_cache_gib": 0.5},
    }  # fmt: skip


@contextmanager
def serving(model: Path, data: Path, load: Load, folder: Path, cores: Cores) -> Iterator[Engines]:
    """A server of the model on its cores, and this process on those of the trainer; afterwards on all it had."""
    before, threads, engines = os.sched_getaffinity(0), torch.get_num_threads(), Engines(folder)
    try:
        os.sched_setaffinity(0, cores.server)  # which a process that we start inherits
        context = Context(resolve(settings(model, data, load, 0)), Store(folder / ".store"), folder, engines)
        context.engine("vllm").use(context.model)
        os.sched_setaffinity(0, cores.trainer)
        torch.set_num_threads(cores.threads)
        yield engines
    finally:
        engines.close()
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def run(model: Path, data: Path, load: Load, folder: Path, engines: Engines, staleness: int) -> Times:
    """The rounds of a run, timed stage by stage."""
    begun: dict[str, float] = {}
    spans: dict[str, list[tuple[float, float]]] = {}

    def on_event(event: StageEvent) -> None:
        now, artifact = time.perf_counter(), event.artifact
        if event.kind == "started":
            begun[artifact.id] = now
        elif event.kind == "built":
            spans.setdefault(artifact.stage, []).append((begun[artifact.id], now))

    chosen = resolve(settings(model, data, load, staleness))
    for _ in run_phases(Context(chosen, Store(folder / ".store", on_event), folder, engines)):
        pass
    generation, update = ([end - start for start, end in spans[stage]] for stage in ("samples", "checkpoint"))
    return Times(spans["checkpoint"][-1][1] - spans["samples"][0][0], generation, update)


def table(measured: Mapping[str, Mapping[int, Sequence[Times]]]) -> str:
    """A row a placement and a staleness, medians over runs; ratios pair by pair."""
    lines = ["| Cores | Samples | Wall s | Generation s | Update s | Fresh / stale | At best |"]
    lines.append("| --- | --- |" + " ---: |" * 5)
    for placement, runs in measured.items():
        for staleness, times in runs.items():
            cells = [placement, "one round stale" if staleness else "fresh", *_medians(times), "-", "-"]
            if staleness:
                pairs = list(zip(runs[0], times, strict=True))
                cells[5] = written(median_interval([fresh.wall / stale.wall for fresh, stale in pairs]))
                cells[6] = written(median_interval([fresh.wall / fresh.at_best for fresh, _ in pairs]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _medians(times: Sequence[Times]) -> list[str]:
    """Of wall time and its parts; what runs beside something is in both."""
    columns = zip(*((each.wall, sum(each.generation), sum(each.update)) for each in times), strict=True)
    return [f"{median_interval(column).median:.1f}" for column in columns]

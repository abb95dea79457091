"""Rounds on fresh samples, and on samples drawn while the round before trains, through one server that stays."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.bench.online import BETA, LEARNING_RATE, rewards
from scripts.bench.table import written
from scripts.bench.timing import median_interval

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Load:
    """num_prompts a round, two samples each; steps passes over its pairs, one batch each."""

    num_rounds: int = 4
    num_prompts: int = 32
    prompt_tokens: int = 30
    new_tokens: int = 64
    steps: int = 2


@dataclass(frozen=True)
class Times:
    """Seconds of a run from its first sample to its last checkpoint: without imports, data, the server's start."""

    wall: float
    generation: Sequence[float]  # by round
    update: Sequence[float]

    @property
    def at_best(self) -> float:
        """Wall seconds of these rounds, were each round's samples drawn beside the update before, at no cost to it."""
        hidden = zip(self.generation[1:], self.update, strict=False)
        return self.wall - sum(min(drawn, trained) for drawn, trained in hidden)


def settings(model: Path, data: Path, load: Load, **vllm: Any) -> Mapping[str, Any]:
    return {
        "model_name_or_path": str(model),
        "data": {"prompts": {"path": str(data)}},
        "labelers": {"rm": {"kind": "callable", "path": f"{rewards.__module__}:{rewards.__name__}"}},
        "prompts": {"from": "prompts", "per_round": load.num_prompts},
        "num_rounds": load.num_rounds,
        "routes": {"online": {"responses": "policy", "num_generations": 2, "labels": "rm"}},
        "loss": {"type": "dpo", "beta": BETA},
        "update": {
            "steps": load.steps, "train_batch_size": load.num_prompts, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "warmup_ratio": 0.0,
        },
        "importance_sampling": {"mode": "truncate"},
        "generation": {"engine": "vllm", "max_completion_length": load.new_tokens},
        "hygiene": {"truncated": "keep"},
        "evaluation": {"num_prompts": 0},
        "vllm": {"kv_cache_gib": 0.5, **vllm},
    }  # fmt: skip


@contextmanager
def serving(config: Path, cores: Collection[int]) -> Iterator[str]:
    """The URL of a server on these cores alone."""
    server = subprocess.Popen(
        _sail(cores, "serve", config), stdout=subprocess.PIPE, text=True, cwd=config.parent, env=_environment()
    )
    try:
        assert server.stdout is not None
        told = next(line for line in server.stdout if line.startswith("serving at "))
        yield told.split()[2].rstrip(";")
    finally:
        server.terminate()
        server.wait(60)


def run(config: Path, out: Path, staleness: int, cores: Collection[int]) -> Times:
    """One `sail run` on these cores alone, timed by its own log."""
    words = ("run", config, f"round.staleness={staleness}", f"cpu_threads={len(cores)}", "--out", out)
    command = _sail(cores, *words)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=config.parent, env=_environment())
    lines = [json.loads(line) for line in (out / "logs/attempt-1/stages.jsonl").read_text().splitlines()]
    by_stage = {stage: [line for line in lines if line["artifact"].startswith(stage)] for stage in ("samples", "check")}
    begun = min(line["ended"] - line["seconds"] for line in by_stage["samples"])
    seconds = {stage: [line["seconds"] for line in found] for stage, found in by_stage.items()}
    return Times(max(line["ended"] for line in lines) - begun, seconds["samples"], seconds["check"])


def _sail(cores: Collection[int], *words: object) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "loops.cli", *map(str, words)]


def _environment() -> Mapping[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def write_config(path: Path, contents: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(contents)))
    return path


def table(measured: Mapping[str, Mapping[int, Sequence[Times]]]) -> str:
    """A row a placement and a staleness, medians over runs; ratios pair by pair."""
    head = (
        "| Cores | Samples | Wall s | Generation | Update | Fresh / stale | At best |\n| --- | --- | " + "---: | " * 5
    )
    lines = [head.rstrip()]
    for placement, runs in measured.items():
        for staleness, times in runs.items():
            cells = [placement, "one round stale" if staleness else "fresh", *map(_seconds, _medians(times)), "-", "-"]
            if staleness:
                pairs = list(zip(runs[0], times, strict=True))
                cells[5] = written(median_interval([fresh.wall / stale.wall for fresh, stale in pairs]))
                cells[6] = written(median_interval([fresh.wall / fresh.at_best for fresh, _ in pairs]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _medians(times: Sequence[Times]) -> list[float]:
    columns = zip(*((each.wall, sum(each.generation), sum(each.update)) for each in times), strict=True)
    return [median_interval(column).median for column in columns]


def _seconds(value: float) -> str:
    return f"{value:.1f}"

"""The run's diary on the terminal: a line for what was made, a line a round, progress in between, never a flood."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sail.core.store import StageEvent

_IMPORTANT = ("reusing", "resuming", "starting")
_SHOWN = (
    "samples", "tokens", "pairs", "labels/pairs", "steps", "responses", "reward/accuracy_holdout", "train", "held_out"
)  # fmt: skip


@dataclass
class Diary:
    """Prints stage events. Reused artifacts are silent; progress comes at most every interval_s.

    log: a line for every artifact that was built, with its seconds: clock times belong into no artifact.
    """

    console: Console
    interval_s: float
    log: Path
    _last_line_s: float = field(default_factory=time.monotonic)

    def __call__(self, event: StageEvent) -> None:
        if event.kind == "built":
            counts = _figures(event.artifact.result())
            self._line(event, f"{event.seconds:6.1f} s  {counts}")
            with self.log.open("a") as file:
                file.write(json.dumps({"artifact": event.artifact.id, "seconds": round(event.seconds, 3)}) + "\n")
        elif event.kind == "note" and (
            event.text.startswith(_IMPORTANT) or time.monotonic() - self._last_line_s >= self.interval_s
        ):
            self._line(event, f"      ...  {event.text}")

    def round_ended(self, label: str, metrics: Mapping[str, float]) -> None:
        """One line for what a round came to."""
        parts = [
            f"{name} {metrics[key]:.3g}"
            for key, name in (("eval/reward", "reward"), ("eval/win_rate", "win rate"), ("objective/kl", "KL"))
            if key in metrics
        ]
        self.console.print(f"[bold]{label}[/] {', '.join(parts)}".rstrip(), highlight=False)

    def _line(self, event: StageEvent, text: str) -> None:
        self._last_line_s = time.monotonic()
        self.console.print(f"{event.artifact.stage:>11}  {event.artifact.key[:8]}  {text}", highlight=False)


def _figures(result: Mapping[str, Any]) -> str:
    shown = [(name, result[name]) for name in _SHOWN if result.get(name) is not None]
    return ", ".join(
        f"{value:,} {name}" if isinstance(value, int) else f"{name} {value:.3g}" for name, value in shown[:3]
    ).replace("labels/", "")

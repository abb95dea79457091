"""The run's diary on the terminal: one line a stage, progress in between, never a flood."""

import time
from dataclasses import dataclass, field

from rich.console import Console

from sail.core.store import StageEvent


@dataclass
class Diary:
    """Prints stage events. Reused artifacts are counted, not listed; progress comes at most every interval_s."""

    console: Console
    interval_s: float
    reused: int = 0
    built: int = 0
    _last_note_s: float = field(default=0.0)

    def __call__(self, event: StageEvent) -> None:
        if event.kind == "reused":
            self.reused += 1
        elif event.kind == "started":
            self._last_note_s = 0.0
            self.console.print(f"[dim]{_clock()}[/] {event.artifact.stage:<12} {event.artifact.key[:8]} ...")
        elif event.kind == "built":
            self.built += 1
            self.console.print(
                f"[dim]{_clock()}[/] {event.artifact.stage:<12} {event.artifact.key[:8]} done in {event.seconds:.1f} s"
            )
        else:
            self._note(event)

    def _note(self, event: StageEvent) -> None:
        now = time.monotonic()
        important = event.text.startswith(("reusing", "resuming"))
        if important or now - self._last_note_s >= self.interval_s:
            self._last_note_s = now
            self.console.print(f"[dim]{_clock()}[/] {event.artifact.stage:<12} {event.text}", highlight=False)


def _clock() -> str:
    return time.strftime("%H:%M:%S")

"""Reading a run from Python: `load_run("runs/quickstart").round(2).pairs()` is a datasets.Dataset."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail.core.errors import UserError


@dataclass(frozen=True)
class Round:
    """One round's artifacts. Tables are `datasets.Dataset`s; pairs load straight into TRL's DPOTrainer."""

    folder: Path

    def pairs(self, route: str | None = None) -> Any:
        """The labelled pairs (columns prompt, chosen, rejected and the label record), of one route or of all."""
        return self._table("pairs", route, "pairs*.parquet")

    def rows(self, route: str | None = None) -> Any:
        """The single responses that losses without pairs learned from, with score, target and tag."""
        return self._table("pairs", route, "rows*.parquet")

    def samples(self, route: str | None = None) -> Any:
        """The sample groups drawn in this round: a prompt with its n responses a row."""
        return self._table("samples", route, "groups*.parquet")

    def scores(self, route: str | None = None) -> Any:
        return self._table("scores", route, "scores*.parquet")

    @property
    def checkpoint(self) -> Path:
        """A folder for from_pretrained: weights or adapter, tokenizer, chat template."""
        return (self.folder / "checkpoint" / "model").resolve()

    def metrics(self) -> dict[str, float]:
        """The evaluation of the round; empty where it was not evaluated."""
        manifest = self.folder / "evaluation" / "manifest.json"
        result: dict[str, float] = json.loads(manifest.read_text())["result"] if manifest.exists() else {}
        return result

    def _table(self, kind: str, route: str | None, pattern: str) -> Any:
        from datasets import load_dataset

        routes = sorted(path.name for path in (self.folder / kind).glob("*"))
        wanted = routes if route is None else [route]
        files = [str(file) for name in wanted for file in sorted((self.folder / kind / name).glob(pattern))]
        if not files:
            raise UserError(
                f"no {kind} of route {route or 'any'}", where=str(self.folder), cure=f"Routes here: {routes}"
            )
        return load_dataset("parquet", data_files=files, split="train")


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def num_rounds(self) -> int:
        record = json.loads((self.folder / "run.json").read_text())
        return sum(entry["round"] >= 0 for entry in record["rounds"])

    @property
    def start(self) -> Round:
        """The starting policy: its evaluation, no samples and no checkpoint."""
        return Round(self.folder / "rounds" / "start")

    def round(self, index: int) -> Round:
        """Round `index`, counted from 0 over all phases; negative counts from the last."""
        position = index if index >= 0 else self.num_rounds + index
        folder = self.folder / "rounds" / f"{position:03d}"
        if not 0 <= position < self.num_rounds:
            raise UserError(f"no round {index}", where=str(self.folder), cure=f"It has {self.num_rounds}")
        return Round(folder)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def load_run(path: str | Path) -> Run:
    """Open runs/<name>."""
    folder = Path(path)
    if not (folder / "run.json").exists():
        raise UserError(f"{str(path)!r} is no run", where="load_run", cure="Give a folder such as runs/quickstart")
    return Run(folder)

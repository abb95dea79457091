"""runs/<ablation>/: which runs it has, how far they are, and what they came to. The runs lie in it, one folder each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loops.ablation import Ablation
from loops.budgets import is_bought
from loops.inspection import read_records
from loops.iterate import START, RoundRecord
from loops.run import notes_of
from loops.run_folder import ABLATION, PLAN, RECORD, STAGES, RunFolder, make_folder, step_means, swept_targets
from sail.core import atomic
from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import SampleGroup
from sail.core.run_settings import RunSettings
from sail.core.settings import parse_settings
from sail.evaluation.comparison import ArmResults, Comparison


@dataclass(frozen=True)
class Listed:
    """A run of the ablation; end: the last artifact it is to have, which tells its results from older ones."""

    name: str
    arm: str
    seed: int
    end: str
    failure: str | None = None


class AblationFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name, root=self.path.parent)

    def check_free(self, ablation: Ablation, *, chosen: bool) -> None:
        """Refuse a run's folder, and, unless the user chose the folder, that of another file of this name."""
        told = self.read() if is_ablation_folder(self.path) else {"config": str(ablation.source)}
        if (self.path / PLAN).exists():
            problem = f"{str(self.path)!r} is the folder of a run"
        elif not chosen and told["config"] != str(ablation.source) and Path(told["config"]).exists():
            problem = f"{str(self.path)!r} is the ablation of {told['config']!r}, not of {str(ablation.source)!r}"
        else:
            return
        raise UserError(problem, where="ablation's folder", cure="Give another one with --out, or rename the config")

    def write(self, ablation: Ablation, runs: Sequence[Listed]) -> None:
        make_folder(self.path)
        atomic.write_json(self.path / ABLATION, {
            "name": ablation.name, "config": str(ablation.source), "asked": ablation.asked,
            "compare_to": ablation.compare_to, "kl_limit": ablation.settings.kl_limit,
            "seeds": list(ablation.settings.seeds), "arms": list(ablation.settings.arms),
            "runs": [vars(run) for run in runs],
        })  # fmt: skip

    def read(self) -> dict[str, Any]:
        contents: dict[str, Any] = json.loads((self.path / ABLATION).read_text())
        return contents

    def listed(self) -> list[Listed]:
        return [Listed(**entry) for entry in self.read()["runs"]]

    def is_done(self, run: Listed) -> bool:
        record = self.path / run.name / RECORD
        if run.failure is not None or not record.exists():
            return False
        told: dict[str, Any] = json.loads(record.read_text())
        made = {id for entry in told["rounds"] for id in entry["artifacts"].values()}
        return bool(told["finished"]) and run.end in made

    def state(self, run: Listed) -> str:
        """done | failed | round k | begun | -"""
        if self.is_done(run):
            return "done"
        if run.failure is not None:
            return "failed"
        if not (self.path / run.name / PLAN).exists():
            return "-"
        record = self.path / run.name / RECORD
        told: dict[str, Any] = {"rounds": [], "finished": True}
        if record.exists():
            told = json.loads(record.read_text())
        turns = [entry["round"] for entry in told["rounds"] if entry["round"] != START]
        return f"round {turns[-1]}" if turns and not told["finished"] else "begun"

    def comparison(self) -> Comparison:
        """What the finished runs came to."""
        told, done = self.read(), [run for run in self.listed() if self.is_done(run)]
        results = {run.name: _results(self.path / run.name) for run in done}
        arms = []
        for arm in told["arms"]:
            own = {run.seed: results[run.name] for run in done if run.arm == arm}
            rounds = {seed: result.rounds for seed, result in own.items() if result.rounds}
            if rounds:
                spent = {seed: result.spent for seed, result in own.items()}
                arms.append(ArmResults(arm, rounds, spent, {seed: result.targets for seed, result in own.items()}))
        return Comparison(told["name"], told["compare_to"], told["seeds"], arms, told["kl_limit"])

    def notes(self) -> list[str]:
        """What a reader must know of single arms, of those that are done."""
        settings = {run.arm: _settings(self.path / run.name) for run in self.listed() if self.is_done(run)}
        return [f"{arm}: {note}" for arm, own in settings.items() for note in notes_of(own)]

    def savings(self) -> "Savings":
        """Artifacts and stage time of the finished runs, with sharing and without."""
        done = [run.name for run in self.listed() if self.is_done(run)]
        wanted = [id for name in done for id in json.loads((self.path / name / PLAN).read_text())["artifacts"]]
        seconds = {id: time for id, time in self.built() if id in set(wanted)}
        return Savings(
            num_asked=len(wanted),
            num_distinct=len(set(wanted)),
            seconds_asked=sum(seconds.get(id, 0.0) for id in wanted),
            seconds_computed=sum(seconds.values()),
            num_untimed=len(set(wanted) - seconds.keys()),
        )

    def built(self) -> Iterator[tuple[str, float]]:
        """(artifact, seconds) of every stage that was computed here, in all attempts."""
        for log in sorted(self.path.glob(f"*/logs/*/{STAGES}")):
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                yield entry["artifact"], entry["seconds"]


@dataclass(frozen=True)
class Savings:
    num_asked: int
    num_distinct: int
    seconds_asked: float
    seconds_computed: float
    num_untimed: int

    def sentence(self) -> str:
        """What sharing saved; artifacts that were there before have no time and count for nothing."""
        text = f"{self.num_asked:,} artifacts asked for, {self.num_distinct:,} made"
        if self.seconds_asked > 0:
            ratio = self.seconds_computed / self.seconds_asked
            text += f"; {self.seconds_computed:,.1f} s of stage time instead of {self.seconds_asked:,.1f} s"
            text += f" (ratio {ratio:.2f})"
        return text + (f"; {self.num_untimed:,} were there before" if self.num_untimed else "")


def is_ablation_folder(path: Path) -> bool:
    return (path / ABLATION).exists()


def _settings(run: Path) -> RunSettings:
    return parse_settings(RunSettings, yaml.safe_load((run / "resolved.yaml").read_text()), str(run))


class _Results(NamedTuple):
    rounds: list[dict[str, float]]  # evaluations of the last phase, with the means of the steps before them
    targets: dict[str, dict[str, float]]  # the last of them at each target of conditional alignment
    spent: dict[str, float]  # by the whole run


def _results(run: Path) -> _Results:
    settings, records = _settings(run), read_records(run)
    last = settings.phases[-1].name
    evaluated = [record for record in records if record.phase == last and "evaluation" in record.artifacts]
    swept = swept_targets(evaluated[-1]) if evaluated else {}
    return _Results(
        rounds=[step_means(record) | record.artifacts["evaluation"].result() for record in evaluated],
        targets={target: artifact.result() for target, artifact in swept.items()},
        spent=_spent(records, settings),
    )


def _labelled(result: Mapping[str, Any]) -> int:
    """Pairs, or single responses, that a labels artifact holds."""
    return int(result.get("labels/pairs", result.get("rows", 0)))


def _drawn_tokens(artifact: Artifact) -> int:
    """Sampled tokens of a samples artifact, or of one where samples meet other responses."""
    if "tokens" in artifact.result():
        return int(artifact.result()["tokens"])
    samples = [sample for group in artifact.read(SampleGroup, "groups") for sample in group.samples]
    return sum(len(sample.token_ids) for sample in samples if not sample.origin.startswith("data:"))


def _spent(records: Sequence[RoundRecord], settings: RunSettings) -> dict[str, float]:
    """Optimizer steps, sampled tokens, and labels by whom; an artifact that many rounds use counts once."""
    phases = {phase.name: phase for phase in settings.phases}
    figures: dict[str, dict[str, int]] = {name: {} for name in ("steps", "tokens", "dataset", "rounds")}
    for record in records:
        routes = phases[record.phase].routes
        for name, artifact in record.artifacts.items():
            kind, _, route = name.partition("/")
            if kind == "checkpoint":
                figures["steps"][artifact.id] = artifact.result()["steps"]
            elif kind == "samples":
                figures["tokens"][artifact.id] = _drawn_tokens(artifact)
            elif kind == "pairs" and routes[route].labels.by in settings.data:
                source, pairs = routes[route].labels.by, _labelled(artifact.result())
                figures["dataset"][source] = max(pairs, figures["dataset"].get(source, 0))
            elif kind == "pairs" and is_bought(routes[route], settings):
                figures["rounds"][artifact.id] = _labelled(artifact.result())
    names = {"steps": "Optimizer steps", "tokens": "Sampled tokens", "dataset": "Dataset pairs",
             "rounds": "Labels in rounds"}  # fmt: skip
    return {names[name]: float(sum(found.values())) for name, found in figures.items()}

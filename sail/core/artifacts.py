"""Artifacts: what a stage leaves behind, found again by the recipe it was made from.

An artifact lives in <root>/<stage>-<key>/, its key is the hash of the stage's name and version, the keys of its
inputs and the settings that can change the result. It is built in <root>/<stage>-<key>.partial/ and committed by one
rename, manifest written last; a committed artifact is never written again. Resuming, re-running after a change and
sharing work between runs are the same look-up.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sail.core.atomic import file_sha256, tree_files
from sail.core.errors import UserError
from sail.core.records import content_hash
from sail.core.tables import read_table

MANIFEST = "manifest.json"
_KEY_LENGTH = 20
_R = TypeVar("_R")


class Keyed(Protocol):
    """Anything a recipe may take as an input."""

    @property
    def key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Leaf:
    """A user's file or folder, or a Hub snapshot: enters recipes by content."""

    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A committed (or, in a plan, a future) stage result."""

    stage: str
    key: str
    path: Path
    base: Leaf | None = field(default=None, compare=False)  # below a LoRA checkpoint: the model, where this run has it

    @property
    def id(self) -> str:
        return f"{self.stage}-{self.key}"

    @property
    def committed(self) -> bool:
        return (self.path / MANIFEST).exists()

    def manifest(self) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
        except ValueError:
            cure = f"Remove {self.path}: the same command makes it anew"
            raise UserError(f"the manifest of {self.id} cannot be read", where="store", cure=cure) from None
        return manifest

    def result(self) -> dict[str, Any]:
        """The counts and figures the stage returned."""
        result: dict[str, Any] = self.manifest()["result"]
        return result

    def read(self, kind: type[_R], name: str) -> list[_R]:
        """All records of a table, its shards in order."""
        single = self.path / f"{name}.parquet"
        parts = [single] if single.exists() else sorted(self.path.glob(f"{name}-*.parquet"))
        return [record for part in parts for record in read_table(part, kind)]

    def damaged_files(self) -> list[str]:
        """Names of files that differ from the manifest's SHA-256; the manifest's own where it cannot be read."""
        try:
            files: dict[str, dict[str, Any]] = self.manifest()["files"]
        except UserError:
            return [MANIFEST]
        return [name for name, entry in files.items() if _differs(self.path / name, entry["sha256"])]


def _differs(path: Path, sha256: str) -> bool:
    return not path.exists() or file_sha256(path) != sha256


def recipe_key(stage: str, version: int, recipe: Mapping[str, Any], inputs: Mapping[str, Keyed]) -> str:
    """The key of an artifact; equal recipes give equal keys in every run, on every machine."""
    keys = {name: artifact.key for name, artifact in inputs.items()}
    whole = {"stage": stage, "version": version, "recipe": recipe, "inputs": keys}
    return content_hash(whole, _KEY_LENGTH)


def leaf(path: Path, where: str = "") -> Leaf:
    """A user's file or folder, hashed in full."""
    if not path.exists():
        raise UserError(f"no such file or folder: {str(path)!r}", where=where, cure="Check the path")
    return Leaf(path, _content_key(path, _stamp(path)))


@cache
def _content_key(path: Path, stamp: tuple[Any, ...]) -> str:
    if path.is_file():
        return file_sha256(path)[:_KEY_LENGTH]
    return content_hash({str(file.relative_to(path)): file_sha256(file) for file in tree_files(path)}, _KEY_LENGTH)


def _stamp(path: Path) -> tuple[Any, ...]:
    files = [path] if path.is_file() else tree_files(path)
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)

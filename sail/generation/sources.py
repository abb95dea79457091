"""User data: its files as an input of recipes, and their rows, read whatever the file's kind."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sail.core.artifacts import Leaf, leaf
from sail.core.errors import UserError
from sail.core.json_lines import json_lines
from sail.core.run_settings import DataSettings
from sail.generation.source_rows import SourceRow, parse_row

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_HUB = "hub-"  # begins the key of a Hub dataset


def source_leaf(source: DataSettings, where: str) -> Leaf:
    """The files of a source, as an input of recipes: local ones by content, a Hub dataset by its commit."""
    path = Path(source.path).expanduser()
    if path.exists() or source.path.startswith((".", "/", "~")) or path.suffix in (*_READERS, ".gz"):
        if source.split not in (None, "train"):
            raise UserError(
                f"split {source.split!r} of a local file", where=f"{where}.split",
                cure="Splits are for Hub datasets: name the file, and use offset and limit",
            )  # fmt: skip
        return leaf(path.resolve(), f"{where}.path")
    return Leaf(Path(source.path), f"{_HUB}{source.path}@{_hub_commit(source.path, where)}")


def _hub_commit(name: str, where: str) -> str:
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return str(dataset_info(name).sha)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{name!r} is no file here and could not be found on the Hub ({type(error).__name__})",
            where=f"{where}.path", cure="Check the name and the network, or give a local file",
        ) from error  # fmt: skip


def read_source(source: DataSettings, files: Leaf, where: str) -> list[SourceRow]:
    """All rows of a source, validated; a bad row is named by its number."""
    rows = [
        parse_row(raw, source, f"{where}, row {number}")
        for number, raw in enumerate(_raw_rows(source, files, where))
        if number >= source.offset
    ]
    if not rows:
        raise UserError(f"{source.path!r} holds no rows", where=where, cure="Check path, split, offset and limit")
    return rows


def _raw_rows(source: DataSettings, files: Leaf, where: str) -> Iterator[Mapping[str, Any]]:
    stop = None if source.limit is None else source.offset + source.limit
    for number, row in enumerate(_dataset(source, files, where)):
        if stop is not None and number >= stop:
            return
        yield row


def _dataset(source: DataSettings, known: Leaf, where: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        if known.key.startswith(_HUB):
            commit = known.key.rpartition("@")[2]
            return load_dataset(source.path, source.name, split=source.split or "train", revision=commit)
        path = known.path
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _reader(file))
        if not files:
            raise UserError(
                f"no data files in {str(path)!r}", where=where, cure=f"Known endings: {', '.join(_READERS)}"
            )
        if all(_reader(file) == "json" for file in files):
            return [row for file in files for row in _json_rows(file, where)]
        return load_dataset(_reader(files[0]) or "json", data_files=[str(file) for file in files], split="train")
    except (DatasetGenerationError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{source.path!r} cannot be read: {error}", where=where, cure="Check format and split"
        ) from error


def _reader(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    return _READERS.get(Path(name).suffix)


def _json_rows(path: Path, where: str) -> Iterator[Mapping[str, Any]]:
    """Objects of an array, or one on each line."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        text = file.read()
    if text.lstrip().startswith("["):
        for number, row in enumerate(_json(text, path, 1, where)):
            yield _object(row, f"entry {number} of {str(path)!r}", where)
    else:
        for number, line in json_lines(text):
            yield _object(_json(line, path, number, where), f"line {number} of {str(path)!r}", where)


def _json(text: str, path: Path, first_line: int, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(
            f"line {line} of {str(path)!r} is no valid JSON: {error.msg} at column {error.colno}", where=where,
            cure="Mend or remove that line",
        ) from error  # fmt: skip


def _object(row: Any, place: str, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{place} is no object: {row!r:.80}", where=where, cure="Write {...} with the row's columns")
    return row

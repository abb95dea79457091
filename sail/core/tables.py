"""Records on disk: one Parquet table per record type, readable with `datasets`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sail.core import records

_IDS = pa.list_(pa.int32())
_NUMBERS = pa.list_(pa.float64())
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SAMPLE = pa.struct(
    [
        ("response_id", pa.string()),
        ("origin", pa.string()),
        ("text", pa.string()),
        ("token_ids", _IDS),
        ("logprobs", _NUMBERS),
        ("stop_kind", pa.string()),
        ("policy_version", pa.string()),
        ("seed", pa.int64()),
    ]
)

SCHEMAS: dict[type, pa.Schema] = {
    records.Prompt: pa.schema([
        ("prompt_id", pa.string()), ("messages", _MESSAGES), ("token_ids", _IDS),
    ]),
    records.SampleGroup: pa.schema([
        ("prompt", pa.struct([("prompt_id", pa.string()), ("messages", _MESSAGES), ("token_ids", _IDS)])),
        ("samples", pa.list_(_SAMPLE)),
    ]),
    records.DatasetVerdict: pa.schema([
        ("prompt_id", pa.string()), ("chosen_id", pa.string()), ("rejected_id", pa.string()),
        ("score_chosen", pa.float64()), ("score_rejected", pa.float64()), ("p_chosen", pa.float64()),
        ("margin", pa.float64()),
    ]),
    records.DatasetRating: pa.schema([
        ("prompt_id", pa.string()), ("response_id", pa.string()), ("score", pa.float64()), ("thumb", pa.bool_()),
    ]),
    records.ScoredGroup: pa.schema([
        ("prompt_id", pa.string()), ("response_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float64())),
    ]),
    records.ResponseLogps: pa.schema([
        ("response_id", pa.string()), ("logp", pa.float64()), ("num_tokens", pa.int32()),
    ]),
    records.RolloutTokens: pa.schema([
        ("response_id", pa.string()), ("old_logps", _NUMBERS), ("ref_logps", _NUMBERS), ("values", _NUMBERS),
        ("advantages", _NUMBERS), ("returns", _NUMBERS),
    ]),
    records.ResponseFeatures: pa.schema([
        ("response_id", pa.string()), ("indices", _IDS), ("values", _NUMBERS),
    ]),
    records.PreferencePair: pa.schema([
        ("pair_id", pa.string()), ("prompt_id", pa.string()), ("a_id", pa.string()), ("b_id", pa.string()),
        ("round_index", pa.int32()), ("source", pa.string()), ("mode", pa.string()), ("labeler", pa.string()),
        ("labeler_digest", pa.string()), ("verdict", pa.string()), ("p_a", pa.float64()),
        ("score_a", pa.float64()), ("score_b", pa.float64()), ("draw", pa.float64()),
        ("length_a", pa.int32()), ("length_b", pa.int32()), ("truncated_a", pa.bool_()), ("truncated_b", pa.bool_()),
        ("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES), ("steps", pa.list_(pa.string())),
    ]),
    records.PairVerdict: pa.schema([
        ("pair_id", pa.string()), ("prompt_id", pa.string()), ("a_id", pa.string()), ("b_id", pa.string()),
        ("verdict", pa.string()), ("p_a", pa.float64()), ("forward", pa.string()), ("backward", pa.string()),
        ("problem", pa.string()),
    ]),
    records.ResponseRow: pa.schema([
        ("row_id", pa.string()), ("prompt_id", pa.string()), ("response_id", pa.string()),
        ("round_index", pa.int32()), ("labeler", pa.string()), ("labeler_digest", pa.string()),
        ("score", pa.float64()), ("target", pa.float64()), ("tag", pa.string()), ("mismatched_id", pa.string()),
        ("prompt", _MESSAGES), ("completion", _MESSAGES),
    ]),
}  # fmt: skip

_R = TypeVar("_R")


def write_table(path: Path, rows: Sequence[Any], kind: type) -> None:
    """Write records of one kind; an empty sequence gives an empty table with the same columns."""
    table = pa.Table.from_pylist([_as_dict(row) for row in rows], schema=SCHEMAS[kind])
    pq.write_table(table, path, compression="zstd")


def read_table(path: Path, kind: type[_R]) -> list[_R]:
    """Read and validate the records of one table."""
    return [_from_dict(kind, row) for row in pq.read_table(path, schema=SCHEMAS[kind]).to_pylist()]


def _as_dict(record: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _as_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _from_dict(kind: type[_R], row: dict[str, Any]) -> _R:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    if kind is records.SampleGroup:
        values = {
            "prompt": _from_dict(records.Prompt, row["prompt"]),
            "samples": tuple(_from_dict(records.Sample, sample) for sample in row["samples"]),
        }
    return kind(**values)

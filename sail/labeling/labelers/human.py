"""People as a labeler: a sheet of pairs goes out, the run stops, and goes on once the sheet is filled in."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sail.core.artifacts import Leaf
from sail.core.atomic import write_bytes
from sail.core.errors import UserError, WaitingForPeopleError
from sail.core.json_lines import json_lines
from sail.core.labeler_settings import HumanLabeler
from sail.core.records import Comparison, content_hash
from sail.core.seeds import uniform
from sail.core.store import Workspace
from sail.labeling.judge_questions import VALUES
from sail.labeling.labeler_row import Comparer, PairAnswer, PairLabeler
from sail.labeling.labels import winner_of

_COLUMNS = ("id", "prompt", "response_a", "response_b", "verdict", "comment")
_ALL_AT_ONCE = 1 << 30  # one sheet a stage
Row = dict[str, str]


def human_labeler(name: str, settings: HumanLabeler, endpoint: None = None) -> PairLabeler:
    """One sheet per stage, <folder>/<name>-<key>.<format>; verdict is A, B, tie or abstain, in any case.

    The sides are shuffled by a draw on the texts, so that people's liking for the left or right averages out.
    Raises WaitingForPeopleError while a verdict is missing, UserError where the sheet does not fit the pairs.
    """
    source = Leaf(Path(), content_hash(["human", name], 20))

    def open_sheet(workspace: Workspace) -> Comparer:
        key = workspace.path.name.partition("-")[2][:12]
        path = Path(settings.folder) / f"{name}-{key}.{settings.format}"
        return lambda comparisons: _ask(path, comparisons, f"labelers.{name}")

    return PairLabeler(name, source, {"kind": "human", "name": name}, open_sheet, _ALL_AT_ONCE)


def _ask(path: Path, comparisons: Sequence[Comparison], where: str) -> list[PairAnswer]:
    asked = {_id(comparison): comparison for comparison in comparisons}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _sheet([_row(name, one) for name, one in asked.items()], path.suffix).encode())
    answered = {row["id"]: row for row in _read(path, where)}
    if answered.keys() != asked.keys():
        raise UserError(
            f"{path} holds {len(answered)} rows, {len(answered.keys() & asked.keys())} of the {len(asked)} pairs of "
            "this stage", where=where, cure="Change nothing but verdict and comment; remove the file to write it anew",
        )  # fmt: skip
    missing = [row for row in answered.values() if not (row.get("verdict") or "").strip()]
    if missing:
        raise WaitingForPeopleError(
            f"{len(missing)} of {len(answered)} pairs in {path} wait for a verdict (A, B, tie or abstain). "
            "Fill them in and run the same command: it goes on from here"
        )
    return [_answer(answered[_id(comparison)], comparison, f"{where}: {path}") for comparison in comparisons]


def _id(comparison: Comparison) -> str:
    turns = [[turn["role"], turn["content"]] for turn in comparison.prompt]
    return content_hash([turns, comparison.a, comparison.b])


def _turned(comparison: Comparison) -> bool:
    return uniform("sheet_side", _id(comparison)) < 0.5


def _row(name: str, comparison: Comparison) -> Row:
    sides = (comparison.b, comparison.a) if _turned(comparison) else (comparison.a, comparison.b)
    turns = [turn["content"] if len(comparison.prompt) == 1 else f"{turn['role']}: {turn['content']}"
             for turn in comparison.prompt]  # fmt: skip
    return dict(zip(_COLUMNS, (name, "\n\n".join(turns), *sides, "", ""), strict=True))


def _sheet(rows: Sequence[Row], suffix: str) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read(path: Path, where: str) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    csv.field_size_limit(sys.maxsize)  # of the whole process; a response may be longer than its 128 KiB
    try:
        rows = (
            [json.loads(line) for _, line in json_lines(text)]
            if path.suffix == ".jsonl"
            else list(csv.DictReader(io.StringIO(text, newline="")))
        )
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}", where=where, cure="Save it in its first format") from None
    if any(not isinstance(row, dict) or "id" not in row for row in rows):
        raise UserError(f"{path} has rows without id", where=where, cure="Keep the columns of the sheet")
    return rows


def _answer(row: Mapping[str, str], comparison: Comparison, where: str) -> PairAnswer:
    said = row["verdict"].strip().lower()
    if said == "abstain":
        return PairAnswer("abstain")
    values = {name.lower(): value for name, value in VALUES.items()}
    if said not in values:
        raise UserError(f"verdict {row['verdict']!r} of row {row['id']}", where=where, cure="Use A, B, tie or abstain")
    p_a = 1.0 - values[said] if _turned(comparison) else values[said]
    return PairAnswer(winner_of(p_a, 0.5), p_a)

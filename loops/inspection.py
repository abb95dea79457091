"""Looking into a run's folder: status, report, one id."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from loops.iterate import RoundRecord
from loops.life_story import story
from loops.run import report_data, rows
from loops.run_folder import PLAN, RECORD, RunFolder
from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import PairVerdict, PreferencePair, ResponseRow, SampleGroup, ScoredGroup
from sail.core.run_settings import RunSettings
from sail.core.settings import parse_settings
from sail.core.store import Store
from sail.evaluation.report import write_report
from sail.evaluation.table import tables


def read_records(run: Path) -> list[RoundRecord]:
    """The rounds of a run as the loop recorded them."""
    path = run / RECORD
    if not path.exists() and (run / PLAN).exists():
        raise UserError(
            f"{str(run)!r} has finished nothing yet", where="run", cure="Go on with the same `sail run` as before"
        )
    if not path.exists():
        raise UserError(f"{str(run)!r} is no run", where="run", cure="Give a folder such as runs/quickstart")
    store = Store(RunFolder(run.absolute()).store_root)
    records = [
        RoundRecord(
            entry["round"], entry["phase"], {name: _artifact(store, id) for name, id in entry["artifacts"].items()}
        )
        for entry in json.loads(path.read_text())["rounds"]
    ]
    _refuse_missing(records, run, store)
    return records


def _refuse_missing(records: Sequence[RoundRecord], run: Path, store: Store) -> None:
    """A run that was copied without its store, or whose artifacts were removed by hand."""
    gone = {one.id for record in records for one in record.artifacts.values() if not one.committed}
    if gone:
        raise UserError(
            f"{len(gone)} of its artifacts are not in {str(store.root)!r}", where=str(run),
            cure="Copy them there, or make them anew with the same `sail run`; `sail verify` names them",
        )  # fmt: skip


def _artifact(store: Store, id: str) -> Artifact:
    stage, _, key = id.rpartition("-")
    return store.artifact(stage, key)


def print_status(run: Path, console: Console) -> None:
    if (run / PLAN).exists() and not (run / RECORD).exists():
        console.print("nothing finished yet: the same `sail run` goes on")
    else:
        console.print(tables(rows(read_records(run))))
        finished = json.loads((run / RECORD).read_text())["finished"]
        console.print("complete" if finished else "not complete: the same `sail run` goes on")
    for name in sorted(path.name for path in RunFolder(run.absolute()).store_root.glob("*.partial")):
        console.print(f"half done in the store: {name}")


def rewrite_report(run: Path, console: Console) -> None:
    records = read_records(run)
    settings = parse_settings(RunSettings, yaml.safe_load((run / "resolved.yaml").read_text()), str(run))
    console.print(tables(rows(records)))
    console.print(f"report: {write_report(run, report_data(run.name, settings, records))}", soft_wrap=True)


def show_id(run: Path, id: str, console: Console) -> None:
    """Every record that carries `id`, with where it was found; for a pair its life story first."""
    found = 0
    for line in story(read_records(run), id):
        console.print(escape(line), soft_wrap=True, highlight=False)
    for record in read_records(run):
        for name, artifact in record.artifacts.items():
            for row in _matching(artifact, id):
                found += 1
                console.print(f"[bold]{record.title}, {name}[/] ({artifact.id})")
                console.print_json(data=row, default=str)
    if not found:
        raise UserError(f"nothing is called {id!r}", where=str(run), cure="Ids stand in the tables of rounds/*/")


def _matching(artifact: Artifact, id: str) -> Iterator[dict[str, Any]]:
    if id in (artifact.id, artifact.key):
        manifest = artifact.manifest()
        manifest.pop("files")
        yield manifest
    if artifact.stage in _TABLES:
        table, kind = _TABLES[artifact.stage]
        yield from (asdict(row) for row in artifact.read(kind, table) if id in _ids(row))


_TABLES: dict[str, tuple[str, type[Any]]] = {
    "samples": ("groups", SampleGroup),
    "responses": ("groups", SampleGroup),  # of several sources
    "scores": ("scores", ScoredGroup),
    "verdicts": ("pair_verdicts", PairVerdict),
    "pairs": ("pairs", PreferencePair),
    "rows": ("rows", ResponseRow),
}


def _ids(row: Any) -> set[str]:
    """Of a record and of what it is about."""
    if isinstance(row, SampleGroup):
        return {row.prompt.prompt_id, *(sample.response_id for sample in row.samples)}
    named = ("row_id", "pair_id", "prompt_id", "response_id", "a_id", "b_id")
    return {getattr(row, name) for name in named if hasattr(row, name)} | set(getattr(row, "response_ids", ()))

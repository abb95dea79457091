"""The segments of a refreshed round, gathered: for each route one artifact of samples, one of scores, one of pairs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail.core.artifacts import Artifact, Keyed
from sail.core.records import PreferencePair, ResponseRow, SampleGroup, ScoredGroup
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling.label_figures import label_figures
from sail.update.feed import CONTENTS, SEGMENTS

VERSION = 1
_TABLES: dict[str, tuple[str, type]] = {
    "samples": ("groups", SampleGroup),
    "scores": ("scores", ScoredGroup),
    "pairs": ("pairs", PreferencePair),
    "rows": ("rows", ResponseRow),
}


def gather(
    builder: Builder, checkpoint: Artifact, drawn: Mapping[str, Artifact], seeds: Mapping[str, int]
) -> dict[str, Artifact]:
    """samples/online, scores/online, pairs/online ... of a round from the segments inside its checkpoint.

    drawn: the names, each with an artifact of its stage; seeds: of the labels of a route.
    """
    made: dict[str, Artifact] = {}
    for name, planned in sorted(drawn.items(), key=lambda entry: entry[1].stage in ("pairs", "rows")):
        route = name.partition("/")[2]
        inputs: dict[str, Keyed] = {"checkpoint": checkpoint}
        if planned.stage in ("pairs", "rows"):
            inputs["responses"] = made[f"samples/{route}"]
        made[name] = _gathered(builder, name, planned.stage, inputs, seeds[route], checkpoint)
    return made


def _gathered(
    builder: Builder, name: str, stage: str, inputs: Mapping[str, Keyed], seed: int, checkpoint: Artifact
) -> Artifact:
    table, kind = _TABLES[stage]

    def run(workspace: Workspace) -> dict[str, Any]:
        folders = [checkpoint.path / SEGMENTS / f"{index:05d}" for index in range(checkpoint.result()["refreshes"])]
        parts = [_part(folder, name) for folder in folders]
        rows: list[list[Any]] = [part.read(kind, table) for part in parts]
        everything = [row for part in rows for row in part]
        workspace.write(table, everything, kind)
        figures = label_figures(everything) if kind is PreferencePair else {}
        return _together([part.result() for part in parts], [len(part) for part in rows]) | figures

    return builder.build(Recipe(stage, VERSION, {"gathered": name, "seed": seed}, inputs), run)


def _part(folder: Path, name: str) -> Artifact:
    id = json.loads((folder / CONTENTS).read_text())[name]
    stage, _, key = id.rpartition("-")
    return Artifact(stage, key, folder / id)


def _together(results: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Counts are summed, other figures averaged over the rows they stand for; what is no number is the first's."""
    together: dict[str, Any] = {}
    for key in dict.fromkeys(key for result in results for key in result):
        found = [(result[key], size) for result, size in zip(results, sizes, strict=True) if key in result]
        values = [value for value, _ in found]
        if all(isinstance(value, int) for value in values):
            together[key] = sum(values)
        elif all(isinstance(value, (int, float)) for value in values):
            together[key] = sum(value * size for value, size in found) / max(1, sum(size for _, size in found))
        else:
            together[key] = values[0]
    return together

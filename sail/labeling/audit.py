"""The audit stage: what other labelers say of the pairs that reach the update. For the report, never the update."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sail.core.artifacts import Artifact, Keyed
from sail.core.records import DatasetVerdict, PreferencePair, SampleGroup, Verdict, index_responses
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling.candidates import Candidate
from sail.labeling.evidence import Evidence
from sail.labeling.label_figures import agreement, agreement_matrix, calibration_error, reliability
from sail.labeling.labels import Opinion

VERSION = 1
AUDIT_FILE = "audit.json"
_VALUE = {"A": 1.0, "tie": 0.5, "B": 0.0}


def audit_labels(builder: Builder, responses: Artifact, pairs: Artifact, auditors: Mapping[str, Evidence]) -> Artifact:
    """quality/... of a pairs artifact against each auditor, in the manifest.

    audit.json holds the whole: agreement of every two labelers, the reliability curve against each auditor, the
    histogram of score margins.
    """

    def run(workspace: Workspace) -> dict[str, float]:
        rows = pairs.read(PreferencePair, "pairs")
        candidates = _candidates(rows, responses)
        told = {name: auditor.read(responses).of(candidates) for name, auditor in auditors.items()}
        verdicts: dict[str, Sequence[Verdict]] = {"labels": [row.verdict for row in rows]}
        verdicts |= {name: [opinion.winner for opinion in opinions] for name, opinions in told.items()}
        curves = {name: _curve(rows, opinions) for name, opinions in told.items()}
        figures = {key: value for name in told for key, value in _figures(name, verdicts, curves[name]).items()}
        workspace.write_json(AUDIT_FILE, {
            "agreement": {one: {two: a._asdict() for two, a in row.items()}
                          for one, row in agreement_matrix(verdicts).items()},
            "reliability": {name: [one._asdict() for one in curve] for name, curve in curves.items()},
            "margins": _histogram(rows),
        })  # fmt: skip
        return {"pairs": len(rows), **{key: value for key, value in figures.items() if value is not None}}

    inputs: dict[str, Keyed] = {"responses": responses, "pairs": pairs}
    for name, auditor in auditors.items():
        inputs |= {f"{name}:{key}": artifact for key, artifact in auditor.inputs().items()}
    recipe = {name: auditor.recipe("soft") for name, auditor in auditors.items()}
    return builder.build(Recipe("audit", VERSION, recipe, inputs), run)


def _candidates(rows: Sequence[PreferencePair], responses: Artifact) -> list[Candidate]:
    index = index_responses(responses.read(SampleGroup, "groups"))
    verdicts = {
        frozenset((verdict.chosen_id, verdict.rejected_id)): verdict
        for verdict in responses.read(DatasetVerdict, "verdicts")
    }
    return [
        Candidate(
            row.pair_id, index[row.a_id][0], index[row.a_id][1], index[row.b_id][1],
            verdicts.get(frozenset((row.a_id, row.b_id))),
        )
        for row in rows
    ]  # fmt: skip


def _curve(rows: Sequence[PreferencePair], opinions: Sequence[Opinion]) -> Any:
    known = [(row.p_a, _VALUE[o.winner]) for row, o in zip(rows, opinions, strict=True) if o.decided]
    return reliability([p for p, _ in known], [truth for _, truth in known])


def _figures(name: str, verdicts: Mapping[str, Sequence[Verdict]], curve: Any) -> dict[str, float | None]:
    found = agreement(verdicts["labels"], verdicts[name])
    return {
        f"quality/agreement/{name}": found.raw,
        f"quality/kappa/{name}": found.kappa,
        f"quality/flip_rate/{name}": found.flips,
        f"quality/ece/{name}": calibration_error(curve),
    }


def _histogram(rows: Sequence[PreferencePair]) -> dict[str, list[float]]:
    """|s_a - s_b| in twenty bins: edges and counts; empty without scores."""
    margins = [abs(row.score_a - row.score_b) for row in rows if row.score_a is not None and row.score_b is not None]
    counts, edges = np.histogram(margins, bins=20) if margins else (np.array([]), np.array([]))
    return {"edges": edges.tolist(), "counts": counts.tolist()}

"""Several scorers as one: their mean, the worst case, or the mean less their spread (Coste et al. 2310.02743)."""

from collections.abc import Mapping, Sequence

import numpy as np

from sail.core.artifacts import Artifact, Keyed
from sail.core.labeler_settings import EnsembleLabeler
from sail.core.records import ScoredGroup
from sail.core.store import Builder, Recipe, Workspace

VERSION = 1


def combine_scores(
    builder: Builder, members: Mapping[str, Artifact], first: Mapping[str, Artifact], settings: EnsembleLabeler
) -> Artifact:
    """Table "scores" of ScoredGroup from the scores artifacts of the members, by name, on the same responses.

    With settings.normalize each member's score is (s - mean) / std over `first`, its scores of the first round: units
    that do not move while the policy does. A score that some member did not give stays nan.
    """

    def run(workspace: Workspace) -> dict[str, float]:
        units = {name: _unit(first[name]) if settings.normalize else (0.0, 1.0) for name in members}
        tables = [members[name].read(ScoredGroup, "scores") for name in members]
        scored = [_combined(rows, list(units.values()), settings) for rows in zip(*tables, strict=True)]
        workspace.write("scores", scored, ScoredGroup)
        named = {f"{key}/{name}": unit[i] for name, unit in units.items() for i, key in enumerate(("mean", "std"))}
        return {"prompts": len(scored), "responses": sum(len(group.scores) for group in scored), **named}

    inputs: dict[str, Keyed] = {f"member:{name}": artifact for name, artifact in members.items()}
    if settings.normalize:
        inputs |= {f"first:{name}": first[name] for name in members}
    recipe = {"combine": settings.combine, "k": settings.k if settings.combine == "mean_minus_std" else None,
              "normalize": settings.normalize, "kind": "ensemble"}  # fmt: skip
    return builder.build(Recipe("scores", VERSION, recipe, inputs), run)


def _unit(scores: Artifact) -> tuple[float, float]:
    """(mean, std) of all scores there are; std 1 where they are all one."""
    values = np.array([score for group in scores.read(ScoredGroup, "scores") for score in group.scores])
    values = values[~np.isnan(values)]
    spread = float(values.std()) if values.size else 0.0
    return (float(values.mean()) if values.size else 0.0, spread or 1.0)


def _combined(
    rows: Sequence[ScoredGroup], units: Sequence[tuple[float, float]], settings: EnsembleLabeler
) -> ScoredGroup:
    ids = {row.response_ids for row in rows}
    if len(ids) != 1:
        raise ValueError(f"prompt {rows[0].prompt_id}: the members scored different responses")
    scores_MR = np.array([
        [(score - mean) / spread for score in row.scores] for row, (mean, spread) in zip(rows, units, strict=True)
    ])  # fmt: skip
    together = {
        "mean": scores_MR.mean(0),
        "min": scores_MR.min(0),
        "mean_minus_std": scores_MR.mean(0) - settings.k * scores_MR.std(0),
    }[settings.combine]
    return ScoredGroup(rows[0].prompt_id, rows[0].response_ids, tuple(together.tolist()))

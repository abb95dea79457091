"""A plan: the loop itself, run with a builder that builds nothing and writes down what it would."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sail.core.artifacts import Artifact
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.core.store import Build, Recipe, Store


@dataclass(frozen=True)
class PlannedStage:
    artifact: Artifact
    reused: bool
    settings: Mapping[str, Any]  # of its recipe


@dataclass
class PlanBuilder:
    """A builder that answers with keys: artifacts that are there are reused, the others would be made."""

    store: Store
    stages: dict[str, PlannedStage] = field(default_factory=dict)

    def build(self, recipe: Recipe, run: Build) -> Artifact:
        artifact = self.store.artifact(recipe.stage, recipe.key)
        self.stages.setdefault(artifact.id, PlannedStage(artifact, artifact.committed, recipe.settings))
        return artifact

    @property
    def new(self) -> list[PlannedStage]:
        return [stage for stage in self.stages.values() if not stage.reused]

    def counts(self) -> list[tuple[str, int, int]]:
        """(stage, reused, new) in the order of first use."""
        reused = Counter(stage.artifact.stage for stage in self.stages.values() if stage.reused)
        new = Counter(stage.artifact.stage for stage in self.new)
        names = dict.fromkeys(stage.artifact.stage for stage in self.stages.values())
        return [(name, reused[name], new[name]) for name in names]


def lineage(settings: RunSettings) -> list[str]:
    """Which model starts, samples, labels and refers, a sentence a phase."""
    before = settings.model_name_or_path
    sentences = []
    for phase in settings.phases:
        sentences.append(_lineage(phase, before))
        before = f"the last checkpoint of {phase.name}"
    return sentences


def _lineage(phase: PhaseSettings, before: str) -> str:
    if not phase.routes:
        return f"{phase.name}: evaluation of {before}, nothing is trained."
    routes = "; ".join(
        f"{name} ({route.share}): responses by {' and '.join(route.sources)}, labels by {route.labels.by}"
        for name, route in phase.routes.items()
    )
    references = {"base": before, "previous": "each round's starting policy"}
    reference = references.get(phase.round.reference, f"the last checkpoint of {phase.round.reference}")
    turns = "one offline update" if phase.num_rounds == 0 else f"{phase.num_rounds} rounds"
    each = (
        ""
        if phase.num_rounds < 2
        else f", each from {'the one before' if phase.round.init_from == 'previous' else before}"
    )
    older = "; samples by the policy of the round before" if phase.round.staleness else ""
    return f"{phase.name}: {turns} from {before}{each}; reference {reference}; {routes}{older}."

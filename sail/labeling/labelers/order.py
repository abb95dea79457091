"""Labels by origin: of two responses the one from the earlier source of the route's list wins.

SPIN's label (Chen et al. 2024, arXiv 2401.01335): the demonstration beats the policy's own sample. Nobody is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sail.core.artifacts import Artifact, Keyed
from sail.core.records import LabelMode, LabelSource
from sail.labeling.candidates import Candidate
from sail.labeling.evidence import Opinions
from sail.labeling.labels import Opinion, winner_of


@dataclass(frozen=True, slots=True)
class OrderEvidence:
    """sources: as the route lists them; a data source stands for origin 'data:<name>'."""

    sources: tuple[str, ...]
    labeler: str = "order"

    @property
    def source(self) -> LabelSource:
        return "others"

    @property
    def digest(self) -> str:
        return " > ".join(self.sources)

    def inputs(self) -> dict[str, Keyed]:
        return {}

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        return {"by": "order", "sources": list(self.sources)}

    def read(self, responses: Artifact) -> Opinions:
        return _OrderOpinions(self.sources)


@dataclass(frozen=True, slots=True)
class _OrderOpinions:
    sources: tuple[str, ...]
    scores: None = None

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        return [
            Opinion(winner_of(-self._rank(pair.a.origin), -self._rank(pair.b.origin)), None, None, None)
            for pair in candidates
        ]

    def _rank(self, origin: str) -> int:
        return self.sources.index(origin.removeprefix("data:"))

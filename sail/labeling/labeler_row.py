"""One row of the labeler registry, and the labelers that the scores and the verdicts stage ask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sail.core.artifacts import Keyed
from sail.core.records import Comparison, Example, Verdict
from sail.core.run_settings import LabelerSettings
from sail.core.store import Workspace

Scorer = Callable[[Sequence[Example]], list[float]]
"""Examples -> one score each, higher is better, nan for a counted error; the scores of some examples do not depend on
the others."""


class PairAnswer(NamedTuple):
    """What a labeler of pairs says: PairAnswer("A", 0.75, forward="A", backward="tie"). Fields as in PairVerdict."""

    verdict: Verdict
    p_a: float | None = None
    forward: str = ""
    backward: str = ""
    problem: str = ""


Comparer = Callable[[Sequence[Comparison]], list[PairAnswer]]
"""Comparisons -> one answer each, independent of the others."""


@dataclass(frozen=True, slots=True)
class Labeler:
    """Someone who scores responses, named but not yet loaded."""

    name: str
    source: Keyed
    """the model or the source file: an input of the scores artifact"""
    recipe: Mapping[str, Any]
    """what else can change a score"""
    open: Callable[[Workspace], Scorer]
    """loads the model; only inside a stage's run, whose workspace may hold what a killed attempt was told"""

    @property
    def digest(self) -> str:
        """Names the labeler by content: written into every pair that rests on its scores."""
        return self.source.key


@dataclass(frozen=True, slots=True)
class PairLabeler:
    """Someone who compares two responses; the fields as in Labeler."""

    name: str
    source: Keyed
    recipe: Mapping[str, Any]
    open: Callable[[Workspace], Comparer]
    shard_size: int = 64  # pairs per committed shard

    @property
    def digest(self) -> str:
        return self.source.key


@dataclass(frozen=True, slots=True)
class LabelerRow:
    """A kind of labeler, declared."""

    kind: str
    scores: Callable[..., Labeler] | None
    """(name, settings, made_here) -> Labeler; None for those who score no single responses by themselves"""
    unit: Literal["pair", "response"]
    """what it judges; a judge can do both"""
    needs: tuple[str, ...]
    source: str
    """author year, arXiv, equation"""
    status: str
    verdicts: Callable[..., PairLabeler] | None = None
    """(name, settings, endpoint) -> PairLabeler, for those asked about pairs"""


def compares_pairs(settings: LabelerSettings) -> bool:
    """Whether this labeler is asked about pairs: it then gives verdicts, and no scores."""
    return settings.kind in ("human", "replay") or (settings.kind == "judge" and settings.question == "pairwise")

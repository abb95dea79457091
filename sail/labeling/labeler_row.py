"""One row of the labeler registry, and the labeler that the scores stage asks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sail.core.artifacts import Keyed
from sail.core.records import Example

Scorer = Callable[[Sequence[Example]], list[float]]
"""Examples -> one finite score each, higher is better; the scores of some examples do not depend on the others."""


@dataclass(frozen=True, slots=True)
class Labeler:
    """Someone who scores responses, named but not yet loaded."""

    name: str
    source: Keyed
    """the model or the source file: an input of the scores artifact"""
    recipe: Mapping[str, Any]
    """what else can change a score"""
    open: Callable[[], Scorer]
    """loads the model; only inside a stage's run"""

    @property
    def digest(self) -> str:
        """Names the labeler by content: written into every pair that rests on its scores."""
        return self.source.key


@dataclass(frozen=True, slots=True)
class LabelerRow:
    """A kind of labeler, declared."""

    kind: str
    scores: Callable[..., Labeler] | None
    """(name, settings, fitted) -> Labeler; None for those who answer at pairing, without a scores artifact"""
    unit: Literal["pair", "response"]
    """what it judges"""
    needs: tuple[str, ...]
    source: str
    """author year, arXiv, equation"""
    status: str

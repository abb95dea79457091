"""Another labeler's labels, turned round at a known rate, to study noise (Chowdhury et al. 2403.00409)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sail.core.artifacts import Artifact, Keyed
from sail.core.records import LabelMode, LabelSource, Verdict
from sail.core.seeds import uniform
from sail.labeling.candidates import Candidate
from sail.labeling.evidence import Evidence, Opinions
from sail.labeling.labels import Opinion
from sail.labeling.ratings import Kind, Noise, Rater, Ratings


@dataclass(frozen=True, slots=True)
class NoiseEvidence:
    """Evidence `of` with its label turned round, p -> 1 - p, where U(seed, pair id) < rate.

    Scores stay as they were given: pairings choose by them, and a pair shows what the labeler really thought.
    """

    of: Evidence
    labeler: str
    rate: float
    seed: int

    @property
    def source(self) -> LabelSource:
        return self.of.source

    @property
    def digest(self) -> str:
        return self.of.digest

    def inputs(self) -> dict[str, Keyed]:
        return self.of.inputs()

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        return {"by": "noise", "labeler": self.labeler, "rate": self.rate, "seed": self.seed,
                "of": self.of.recipe(mode)}  # fmt: skip

    def read(self, responses: Artifact) -> Opinions:
        return _NoisyOpinions(self.of.read(responses), self.rate, self.seed)


@dataclass(frozen=True, slots=True)
class NoisyRatings:
    """Ratings `of` whose thumbs are turned round where U(seed, response id) < rate.

    Thumbs alone: what noise would do to a score is somebody's model of it, and no turn.
    """

    of: Rater
    labeler: str
    noise: Noise

    def inputs(self) -> dict[str, Keyed]:
        return self.of.inputs()

    def recipe(self, kind: Kind) -> dict[str, Any]:
        return {"by": "noise", "labeler": self.labeler, **self.noise._asdict(), "of": self.of.recipe(kind)}

    def read(self, responses: Artifact) -> Ratings:
        return self.of.read(responses)._replace(labeler=self.labeler, noise=self.noise)


@dataclass(frozen=True, slots=True)
class _NoisyOpinions:
    opinions: Opinions
    rate: float
    seed: int

    @property
    def scores(self) -> Mapping[str, float] | None:
        return self.opinions.scores

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        given = zip(candidates, self.opinions.of(candidates), strict=True)
        return [self._heard(pair, opinion) for pair, opinion in given]

    def _heard(self, pair: Candidate, opinion: Opinion) -> Opinion:
        if not opinion.decided or uniform(self.seed, "noise", pair.pair_id) >= self.rate:
            return opinion
        turned: dict[Verdict, Verdict] = {"A": "B", "B": "A", "tie": "tie"}
        winner = turned[opinion.winner]
        if opinion.p_a is None:
            return opinion._replace(winner=winner)
        return opinion._replace(winner=winner, p_a=1.0 - opinion.p_a)

"""Evidence: what the pairs stage asks when it has to say which response is better.

Small records stand for it: ScoreEvidence and VerdictEvidence (here), DatasetEvidence, PolicyEvidence and NoiseEvidence
(their labelers' files).
A record names artifacts and settings, so that it enters a recipe; only `read`, inside a stage, opens them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sail.core.artifacts import Artifact, Keyed
from sail.core.records import LabelMode, LabelSource, PairVerdict, SampleGroup, ScoredGroup, index_responses
from sail.labeling.candidates import Candidate
from sail.labeling.labels import Opinion, by_scores, winner_of


class Opinions(Protocol):
    """Evidence, opened."""

    @property
    def scores(self) -> Mapping[str, float] | None:
        """response_id -> score, higher is better; None where the labeler scores no single responses."""

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        """One opinion per candidate, in their order."""


class Evidence(Protocol):
    """Who labels the pairs, and what it needs."""

    @property
    def source(self) -> LabelSource: ...

    @property
    def labeler(self) -> str: ...

    @property
    def digest(self) -> str:
        """Names the labeler by content: written into every pair."""

    def inputs(self) -> dict[str, Keyed]:
        """The artifacts it reads, beside the responses."""

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        """The settings that change its opinions when labels are made in this mode."""

    def read(self, responses: Artifact) -> Opinions:
        """Open the artifacts, for pairs of these responses; only inside a stage's run."""


@dataclass(frozen=True, slots=True)
class ScoreEvidence:
    """Labels by a labeler that scores responses: P(A beats B) = sigmoid((s_a - s_b) / temperature).

    digest is Labeler.digest of the labeler that made the scores artifact. temperature: a number, or the artifact of
    fit_reward_model whose calibrated temperature it is (1 where nothing was held out). missing_eos_penalty is taken
    off the scores of responses that did not end by themselves (TRL's option of that name).
    """

    scores: Artifact
    labeler: str
    digest: str
    temperature: float | Artifact = 1.0  # in units of the score
    missing_eos_penalty: float = 0.0  # in units of the score

    @property
    def source(self) -> LabelSource:
        return "others"

    def tau(self) -> float:
        """The temperature as a number; only inside a stage's run."""
        if isinstance(self.temperature, Artifact):
            return float(self.temperature.result().get("reward/temperature", 1.0))
        return self.temperature

    def inputs(self) -> dict[str, Keyed]:
        fitted = {"temperature": self.temperature} if isinstance(self.temperature, Artifact) else {}
        return {"scores": self.scores, **fitted}

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        names: dict[str, Any] = {"by": "scores", "labeler": self.labeler, "digest": self.digest}
        if self.missing_eos_penalty:
            names |= {"missing_eos_penalty": self.missing_eos_penalty}
        tau = "calibrated" if isinstance(self.temperature, Artifact) else self.temperature
        return names if mode == "hard" else names | {"temperature": tau}

    def read(self, responses: Artifact) -> Opinions:
        groups = self.scores.read(ScoredGroup, "scores")
        scores = {
            response_id: score
            for group in groups
            for response_id, score in zip(group.response_ids, group.scores, strict=True)
        }
        if self.missing_eos_penalty:
            samples = index_responses(responses.read(SampleGroup, "groups"))
            cut = {name for name, (_, sample) in samples.items() if not sample.finished}
            scores = {name: score - self.missing_eos_penalty * (name in cut) for name, score in scores.items()}
        return _ScoreOpinions(scores, self.tau())


@dataclass(frozen=True, slots=True)
class _ScoreOpinions:
    scores: Mapping[str, float]
    temperature: float

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        return [
            by_scores(self.scores[pair.a.response_id], self.scores[pair.b.response_id], self.temperature)
            for pair in candidates
        ]


@dataclass(frozen=True, slots=True)
class VerdictEvidence:
    """Labels by a labeler of pairs: its verdicts artifact; digest is PairLabeler.digest."""

    verdicts: Artifact
    labeler: str
    digest: str
    has_win_rates: bool  # every pair of a prompt was compared: responses have scores too

    @property
    def source(self) -> LabelSource:
        return "others"

    def inputs(self) -> dict[str, Keyed]:
        return {"verdicts": self.verdicts}

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        return {"by": "verdicts", "labeler": self.labeler, "digest": self.digest}

    def beats(self) -> dict[tuple[str, str], float]:
        """(a, b) -> P(a beats b), either way round, of the pairs with a verdict; only inside a stage's run."""
        verdicts = self.verdicts.read(PairVerdict, "pair_verdicts")
        told = [(verdict.a_id, verdict.b_id, verdict.p_a) for verdict in verdicts if verdict.p_a is not None]
        return {(a, b): p_a for a, b, p_a in told} | {(b, a): 1.0 - p_a for a, b, p_a in told}

    def read(self, responses: Artifact) -> Opinions:
        verdicts = self.verdicts.read(PairVerdict, "pair_verdicts")
        groups = self.verdicts.read(ScoredGroup, "scores") if self.has_win_rates else []
        scores = {name: rate for group in groups for name, rate in zip(group.response_ids, group.scores, strict=True)}
        by_ids = {frozenset((verdict.a_id, verdict.b_id)): verdict for verdict in verdicts}
        return _VerdictOpinions(by_ids, scores if self.has_win_rates else None)


@dataclass(frozen=True, slots=True)
class _VerdictOpinions:
    verdicts: Mapping[frozenset[str], PairVerdict]
    scores: Mapping[str, float] | None

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        return [self._opinion(pair) for pair in candidates]

    def _opinion(self, pair: Candidate) -> Opinion:
        verdict = self.verdicts[frozenset((pair.a.response_id, pair.b.response_id))]
        if verdict.p_a is None:
            return Opinion(verdict.verdict, None, None, None)
        p_a = verdict.p_a if verdict.a_id == pair.a.response_id else 1.0 - verdict.p_a
        return Opinion(winner_of(p_a, 0.5), p_a, None, None)

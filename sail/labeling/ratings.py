"""From a labeler's scores to what a loss of single responses reads: normalised scores, thumbs, win rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from sail.core.artifacts import Artifact, Keyed
from sail.core.errors import UserError
from sail.core.records import DatasetRating, DatasetVerdict, SampleGroup
from sail.core.seeds import uniform
from sail.labeling.evidence import Evidence, ScoreEvidence, VerdictEvidence

Kind = Literal["thumbs", "score", "win_rate"]


class Rating(NamedTuple):
    """What is known of one response: Rating(score=1.5, thumb=None) by a reward model."""

    score: float | None
    thumb: bool | None = None


class Noise(NamedTuple):
    """Turns a thumb round where U(seed, response id) < rate."""

    rate: float
    seed: int

    def heard(self, response_id: str, thumb: float) -> float:
        return 1.0 - thumb if uniform(self.seed, "noise", response_id) < self.rate else thumb


class Ratings(NamedTuple):
    """A labeler's ratings, opened."""

    by_response: Mapping[str, Rating]
    labeler: str
    digest: str
    temperature: float = 1.0  # of its soft labels, where the options name none
    beats: Mapping[tuple[str, str], float] | None = None  # (a, b) -> P(a beats b), of a labeler of pairs
    noise: Noise | None = None  # of its thumbs


@dataclass(frozen=True, slots=True)
class RatingOptions:
    """How ratings become targets. Example: RatingOptions("score") for reward-weighted regression."""

    kind: Kind
    normalize: Literal["zscore", "none"] = "zscore"
    threshold: float | None = None  # of raw scores, for thumbs; default: their mean
    temperature: float | None = None  # of win rates, in units of the score; default: the labeler's own

    def recipe(self) -> dict[str, Any]:
        used: dict[str, dict[str, Any]] = {
            "score": {"normalize": self.normalize},
            "thumbs": {"threshold": self.threshold},
            "win_rate": {"temperature": self.temperature},
        }
        return {"as": self.kind, **used[self.kind]}


class Rater(Protocol):
    """Who rates responses, and what it needs: what Evidence is for pairs."""

    def inputs(self) -> dict[str, Keyed]:
        """The artifacts it reads, beside the responses."""

    def recipe(self, kind: Kind) -> dict[str, Any]:
        """The settings that change its ratings, or the targets of this kind that are made of them."""

    def read(self, responses: Artifact) -> Ratings:
        """Open the artifacts; only inside a stage's run."""


@dataclass(frozen=True, slots=True)
class DatasetRatings:
    """A dataset's own word on single responses: its ratings table, else the two sides of its pairs.

    A chosen response is a thumb up, a rejected one a thumb down; one that is both in different pairs is left out, and
    a tie says nothing.
    """

    data: Artifact
    labeler: str

    def inputs(self) -> dict[str, Keyed]:
        return {}  # they lie in the artifact of the responses

    def recipe(self, kind: Kind) -> dict[str, Any]:
        return {"by": "dataset", "labeler": self.labeler}

    def read(self, responses: Artifact) -> Ratings:
        known: dict[str, Rating] = {}
        contradicted: set[str] = set()
        for verdict in responses.read(DatasetVerdict, "verdicts"):
            if verdict.is_tie:
                continue
            for response_id, score, thumb in (
                (verdict.chosen_id, verdict.score_chosen, True), (verdict.rejected_id, verdict.score_rejected, False),
            ):  # fmt: skip
                if response_id in known and known[response_id].thumb != thumb:
                    contradicted.add(response_id)
                known[response_id] = Rating(score, thumb)
        for response_id in contradicted:
            known[response_id] = Rating(known[response_id].score)
        for rating in responses.read(DatasetRating, "ratings"):
            known[rating.response_id] = Rating(rating.score, rating.thumb)
        return Ratings(known, self.labeler, self.data.key)


@dataclass(frozen=True, slots=True)
class ScoredRatings:
    """The scores of any labeler that scores responses; one it could not score (nan) has no rating.

    A labeler of pairs scores a response by its win rate over the others; where win rates are asked for, it has its own
    word on each two responses.
    """

    evidence: Evidence

    def inputs(self) -> dict[str, Keyed]:
        return self.evidence.inputs()

    def recipe(self, kind: Kind) -> dict[str, Any]:
        return self.evidence.recipe("soft" if kind == "win_rate" else "hard")

    def read(self, responses: Artifact) -> Ratings:
        scores = self.evidence.read(responses).scores
        if scores is None:
            raise ValueError(f"labeler {self.evidence.labeler!r} compares pairs and scores no single response")
        rated = {response_id: Rating(score) for response_id, score in scores.items() if not math.isnan(score)}
        temperature = self.evidence.tau() if isinstance(self.evidence, ScoreEvidence) else 1.0
        beats = self.evidence.beats() if isinstance(self.evidence, VerdictEvidence) else None
        return Ratings(rated, self.evidence.labeler, self.evidence.digest, temperature, beats)


def targets(
    groups: Sequence[SampleGroup], ratings: Ratings, options: RatingOptions, where: str
) -> tuple[dict[str, float], dict[str, float]]:
    """response_id -> target for every response of the groups that has one, and what is counted of the raw scores."""
    ids = [sample.response_id for group in groups for sample in group.samples]
    rated = {response_id: ratings.by_response.get(response_id, Rating(None)) for response_id in ids}
    scores = {response_id: rating.score for response_id, rating in rated.items() if rating.score is not None}
    if options.kind == "thumbs":
        return _thumbs(rated, scores, ratings.noise, options.threshold, where)
    if not scores:
        raise UserError(
            f"labels as {options.kind} need scores, and {ratings.labeler!r} has none for these responses", where=where,
            cure="Add a score column (score, or score_chosen and score_rejected), or label by a reward model",
        )  # fmt: skip
    spread = _spread(scores)
    if options.kind == "win_rate" and ratings.beats is not None:
        return _told_win_rates(groups, ratings.beats), spread
    if options.kind == "win_rate":
        return _win_rates(groups, scores, options.temperature or ratings.temperature), spread
    if options.normalize == "none":
        return scores, spread
    mean, deviation = spread["labels/score_mean"], spread["labels/score_std"] or 1.0
    return {response_id: (score - mean) / deviation for response_id, score in scores.items()}, spread


_NO_SCORES = "a threshold needs scores", "Leave labels.threshold out"
_NO_THUMBS = "labels as thumbs need thumbs or scores", "Add a boolean column label, or label by a reward model"


def _thumbs(
    rated: Mapping[str, Rating], scores: Mapping[str, float], noise: Noise | None, threshold: float | None, where: str
) -> tuple[dict[str, float], dict[str, float]]:
    known = {response_id: float(rating.thumb) for response_id, rating in rated.items() if rating.thumb is not None}
    if threshold is not None or not known:
        if not scores:
            problem, cure = _NO_SCORES if known else _NO_THUMBS
            raise UserError(f"{problem}, and these responses have none", where=where, cure=cure)
        limit = float(np.mean(list(scores.values()))) if threshold is None else threshold
        known = {response_id: float(score > limit) for response_id, score in scores.items()}
    if noise is not None:
        known = {response_id: noise.heard(response_id, thumb) for response_id, thumb in known.items()}
    share = sum(known.values()) / len(known)
    if share in (0.0, 1.0):
        raise UserError(
            f"every thumb points {'up' if share else 'down'}: there is nothing to tell apart", where=where,
            cure="Set labels.threshold within the range of the scores, or look at the label column",
        )  # fmt: skip
    return known, {"labels/thumbs_up_share": share}


def _win_rates(groups: Sequence[SampleGroup], scores: Mapping[str, float], temperature: float) -> dict[str, float]:
    """P(y beats the policy's own samples) = mean_j sigmoid((s - s_j) / temperature), itself included (2405.00675)."""
    rates: dict[str, float] = {}
    for group in groups:
        ids = [sample.response_id for sample in group.samples if sample.response_id in scores]
        own = np.array([scores[response_id] for response_id in ids])
        wins = 1.0 / (1.0 + np.exp(np.clip((own[None] - own[:, None]) / temperature, -700, 700)))
        rates |= dict(zip(ids, wins.mean(1).tolist(), strict=True)) if ids else {}
    return rates


def _told_win_rates(groups: Sequence[SampleGroup], beats: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """The same mean over P(y beats y_j) as a labeler of pairs told it, 1/2 against itself; none without a verdict."""
    rates: dict[str, float] = {}
    for group in groups:
        ids = [sample.response_id for sample in group.samples]
        for one in ids:
            told = [beats[one, other] for other in ids if (one, other) in beats]
            if told:
                rates[one] = (sum(told) + 0.5) / (len(told) + 1)
    return rates


def _spread(scores: Mapping[str, float]) -> dict[str, float]:
    values = np.array(list(scores.values()), dtype=np.float64)
    equal = bool(values.min() == values.max())  # their mean is rounded, and what it leaves is no spread
    mean, deviation = (values[0], 0.0) if equal else (values.mean(), values.std())
    return {"labels/score_mean": float(mean), "labels/score_std": float(deviation)}

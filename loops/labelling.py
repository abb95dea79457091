"""Who is asked what about a set of responses: from a labeler's name to its scores, its verdicts, its evidence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loops.context import Context
from loops.label_checks import behind
from sail.core.artifacts import Artifact
from sail.core.labeler_settings import EnsembleLabeler, NoiseLabeler
from sail.core.records import content_hash
from sail.core.route_settings import RouteSettings
from sail.core.seeds import derive_seed
from sail.labeling.evidence import Evidence, ScoreEvidence, VerdictEvidence
from sail.labeling.labeler_row import compares_pairs
from sail.labeling.labelers.dataset import DatasetEvidence
from sail.labeling.labelers.ensemble import combine_scores
from sail.labeling.labelers.noise import NoiseEvidence, NoisyRatings
from sail.labeling.ratings import DatasetRatings, Noise, Rater, ScoredRatings
from sail.labeling.scores import score_responses
from sail.labeling.verdicts import Compared, compare_responses
from sail.policy.loading import Checkpoint


@dataclass(frozen=True)
class Responses:
    """A set of responses that wants labels."""

    route: str
    artifact: Artifact
    first: Callable[[], Artifact]  # the route's responses of the phase's first round: ensembles take their units there
    policy: Checkpoint  # that starts their round, or is evaluated: who judges at url: policy
    compared: Compared
    seed: int  # of the route's labels
    missing_eos_penalty: float = 0.0  # off the scores of samples that did not end by themselves


def compared_by(route: RouteSettings, from_policy: bool) -> Compared:
    """Which pairs of a route's responses a labeler of pairs is asked about."""
    if not from_policy:
        return "verdicts"
    return "random" if route.keep == "random" else "all"


def evidence_by(
    context: Context,
    by: str,
    responses: Responses,
    temperature: float | None,
    made: dict[str, Artifact],
    suffix: str = "",
) -> Evidence:
    """The evidence of a labeler or of the responses' own data source; what it rests on is put into `made`.

    temperature None: the calibrated one of a reward model that is fitted here, 1 of anybody else.
    suffix tells second opinions from the labels themselves: scores/online, scores/online@gold.
    """
    if by in context.settings.data:
        return DatasetEvidence(responses.artifact, by, temperature or 1.0)
    settings, place = context.settings.labelers[by], f"{responses.route}{suffix}"
    if isinstance(settings, NoiseLabeler):
        of = evidence_by(context, settings.of, responses, temperature, made, suffix)
        return NoiseEvidence(of, by, settings.rate, _noise_seed(by, responses))
    if compares_pairs(settings):
        pair_labeler = context.pair_labeler(by, responses.policy)
        verdicts = made[f"verdicts/{place}"] = compare_responses(
            context.builder, responses.artifact, pair_labeler, responses.compared,
            seed=responses.seed, )  # fmt: skip
        return VerdictEvidence(verdicts, by, pair_labeler.digest, responses.compared == "all")
    scores = made[f"scores/{place}"] = scores_by(context, by, responses)
    fitted = context.fitted(by)
    if fitted is not None:
        made[f"reward/{by}"] = fitted
    tau = temperature or fitted or 1.0
    return ScoreEvidence(scores, by, digest_of(context, by, responses.policy), tau, responses.missing_eos_penalty)


def ratings_by(
    context: Context, by: str, responses: Responses, temperature: float | None, made: dict[str, Artifact]
) -> Rater:
    """The same of single responses."""
    settings = context.settings.labelers.get(by)
    if isinstance(settings, NoiseLabeler):
        of = ratings_by(context, settings.of, responses, temperature, made)
        return NoisyRatings(of, by, Noise(settings.rate, _noise_seed(by, responses)))
    if settings is None:
        return DatasetRatings(responses.artifact, by)
    return ScoredRatings(evidence_by(context, by, responses, temperature, made))


def _noise_seed(by: str, responses: Responses) -> int:
    return derive_seed(responses.seed, "noise", by)


def scores_by(context: Context, name: str, responses: Responses) -> Artifact:
    """The scores artifact of a labeler of single responses."""
    settings = context.settings.labelers[name]
    if not isinstance(settings, EnsembleLabeler):
        return score_responses(context.builder, responses.artifact, context.labeler(name, responses.policy))
    members = {one: _member(context, one, responses.artifact, responses.policy) for one in settings.of}
    start = responses.first()
    first = {one: _member(context, one, start, responses.policy) for one in settings.of}
    return combine_scores(context.builder, members, first, settings)


def _member(context: Context, name: str, responses: Artifact, policy: Checkpoint) -> Artifact:
    return score_responses(context.builder, responses, context.labeler(name, policy))


def digest_of(context: Context, name: str, policy: Checkpoint) -> str:
    """Names a labeler of single responses by content."""
    settings = context.settings.labelers[name]
    if isinstance(settings, EnsembleLabeler):
        return content_hash([context.labeler(one, policy).digest for one in settings.of], 20)
    return context.labeler(name, policy).digest


def second_opinions(
    context: Context, route: RouteSettings, responses: Responses, made: dict[str, Artifact]
) -> Mapping[str, Evidence]:
    """Whom the steps of the regulation ask."""
    names = dict.fromkeys(step.other for step in route.labels.regulation if step.step == "disagreement")
    return {name: _second(context, name, route, responses, made) for name in names}


def auditors(
    context: Context, route: RouteSettings, responses: Responses, made: dict[str, Artifact]
) -> Mapping[str, Evidence]:
    """Whom the report compares the labels with."""
    return {name: _second(context, name, route, responses, made) for name in route.labels.audit}


def _second(
    context: Context, name: str, route: RouteSettings, responses: Responses, made: dict[str, Artifact]
) -> Evidence:
    first = behind(route.labels.by, context.settings)
    in_its_unit = behind(name, context.settings) == first  # a temperature is in the unit of one labeler's scores
    return evidence_by(context, name, responses, route.labels.temperature if in_its_unit else None, made, f"@{name}")

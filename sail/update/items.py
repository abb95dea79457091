"""What the update learns from: pairs, responses and groups joined, by id, with their tokens and stored log-probs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sail.core.artifacts import Artifact
from sail.core.records import (
    PreferencePair,
    Prompt,
    ResponseFeatures,
    ResponseRow,
    RolloutTokens,
    Sample,
    SampleGroup,
    index_responses,
)
from sail.core.route_settings import LossSettings, RouteSettings
from sail.objectives import find_loss
from sail.policy.features import read_features
from sail.policy.rows import Row
from sail.policy.scoring import read_logps
from sail.update.rollouts import read_rollouts


@dataclass(frozen=True, slots=True)
class RowSource:
    """One round's rows of a route, and the artifacts their ids point into."""

    responses: Artifact  # groups: a data or samples artifact
    rows: Artifact  # pairs (PreferencePair) or rows (ResponseRow)
    reference_logps: Artifact | None = None
    behavior_logps: Artifact | None = None  # under the policy that drew the samples
    mismatched_logps: Artifact | None = None  # reference log-probs of the rows' table "mismatched" (KTO)
    reference_features: Artifact | None = None  # FPO
    rollouts: Artifact | None = None  # per token, estimated before the update (PPO)


@dataclass(frozen=True, slots=True)
class RouteInput:
    """A named stream of rows with its loss."""

    name: str
    settings: RouteSettings
    loss: LossSettings
    sources: tuple[RowSource, ...]
    sampling_temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Side:
    """One response of an item, ready for the model."""

    row: Row
    ref_logp: float  # nan where the loss needs no reference
    behavior_logp: float  # log-prob under the distribution that drew it; nan for dataset responses
    from_policy: bool
    target: float = float("nan")  # what a label says of this response; nan without labels
    rollout: RolloutTokens | None = None
    ref_features: ResponseFeatures | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A pair (two sides, A first), a single response (one side) or a group (all responses of a prompt)."""

    item_id: str
    sides: tuple[Side, ...]
    p_a: float = 1.0
    draw: float = 0.0
    fresh: bool = False
    mismatched: Side | None = None  # KTO: the response of another prompt behind this one


def load_items(route: RouteInput) -> list[Item]:
    """All rows of a route, rounds in order."""
    return [item for source in route.sources for item in _source_items(source, route)]


def _source_items(source: RowSource, route: RouteInput) -> list[Item]:
    sides = _Sides(source, route.sampling_temperature)
    if source.rows.stage == "pairs":
        pairs = source.rows.read(PreferencePair, "pairs")
        return [
            Item(pair.pair_id, (sides[pair.a_id], sides[pair.b_id]), pair.p_a, pair.draw, pair.source == "fresh")
            for pair in pairs
        ]
    rows = source.rows.read(ResponseRow, "rows")
    if find_loss(route.loss.type).unit == "group":
        return _group_items(rows, sides)
    strangers = _mismatched(source)
    return [Item(row.row_id, (sides.of(row),), mismatched=strangers.get(row.row_id)) for row in rows]


def _group_items(rows: Sequence[ResponseRow], sides: "_Sides") -> list[Item]:
    members: dict[str, list[ResponseRow]] = {}
    for row in rows:
        members.setdefault(row.prompt_id, []).append(row)
    return [Item(prompt_id, tuple(sides.of(row) for row in group)) for prompt_id, group in members.items()]


def _mismatched(source: RowSource) -> dict[str, Side]:
    """row_id -> its mismatched side, where the rows have one."""
    groups = source.rows.read(SampleGroup, "mismatched")
    if not groups:
        return {}
    index, reference = index_responses(groups), _logps(source.mismatched_logps)
    strangers = {}
    for row in source.rows.read(ResponseRow, "rows"):
        prompt, sample = index[row.mismatched_response_id]
        tokens = Row(prompt.token_ids, sample.token_ids)
        ref_logp = reference[row.mismatched_response_id]
        strangers[row.row_id] = Side(tokens, ref_logp, float("nan"), from_policy=False)
    return strangers


class _Sides:
    """Sides by response id: a response under a wrong prompt cannot be built."""

    def __init__(self, source: RowSource, temperature: float) -> None:
        self.index = index_responses(source.responses.read(SampleGroup, "groups"))
        self.reference = _logps(source.reference_logps)
        self.behavior = _logps(source.behavior_logps)
        self.rollouts = {} if source.rollouts is None else read_rollouts(source.rollouts)
        self.ref_features = {} if source.reference_features is None else read_features(source.reference_features)
        self.temperature = temperature

    def __getitem__(self, response_id: str) -> Side:
        prompt, sample = self.index[response_id]
        rollout = self.rollouts.get(response_id)
        return Side(
            row=Row(prompt.token_ids, sample.token_ids),
            ref_logp=self.reference.get(response_id, float("nan")) if rollout is None else sum(rollout.ref_logps),
            behavior_logp=self._behavior_logp(prompt, sample),
            from_policy=sample.origin == "policy",
            rollout=rollout,
            ref_features=self.ref_features.get(response_id),
        )

    def of(self, row: ResponseRow) -> Side:
        """The response of a row, with what its label says."""
        return replace(self[row.response_id], target=float("nan") if row.target is None else row.target)

    def _behavior_logp(self, prompt: Prompt, sample: Sample) -> float:
        """The trainer's own log-prob of the drawing policy; at another temperature, the sampler's recorded one."""
        if self.temperature != 1.0 and sample.logprobs:
            return float(sum(sample.logprobs))
        return self.behavior.get(sample.response_id, float("nan"))


def _logps(artifact: Artifact | None) -> Mapping[str, float]:
    return {} if artifact is None else read_logps(artifact)

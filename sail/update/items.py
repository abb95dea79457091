"""What the update learns from: pairs and responses joined, by id, with their tokens and stored log-probs."""

from collections.abc import Mapping
from dataclasses import dataclass

from sail.core.artifacts import Artifact
from sail.core.records import PreferencePair, Prompt, ResponseRow, Sample, SampleGroup, index_responses
from sail.core.run_settings import LossSettings, RouteSettings
from sail.policy.rows import Row
from sail.policy.scoring import read_logps


@dataclass(frozen=True, slots=True)
class RowSource:
    """One round's rows of a route, and the artifacts their ids point into."""

    responses: Artifact  # groups: a data or samples artifact
    rows: Artifact  # pairs (PreferencePair) or rows (ResponseRow)
    reference_logps: Artifact | None = None
    behavior_logps: Artifact | None = None  # under the policy that drew the samples


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


@dataclass(frozen=True, slots=True)
class Item:
    """A pair (two sides, A first) or a single response (one side)."""

    item_id: str
    sides: tuple[Side, ...]
    p_a: float = 1.0
    draw: float = 0.0
    fresh: bool = False


def load_items(route: RouteInput) -> list[Item]:
    """All rows of a route, rounds in order."""
    return [item for source in route.sources for item in _source_items(source, route.sampling_temperature)]


def _source_items(source: RowSource, temperature: float) -> list[Item]:
    sides = _Sides(source, temperature)
    if source.rows.stage == "pairs":
        pairs = source.rows.read(PreferencePair, "pairs")
        return [
            Item(pair.pair_id, (sides[pair.a_id], sides[pair.b_id]), pair.p_a, pair.draw, pair.source == "fresh")
            for pair in pairs
        ]
    return [Item(row.row_id, (sides[row.response_id],)) for row in source.rows.read(ResponseRow, "rows")]


class _Sides:
    """Sides by response id: a response under a wrong prompt cannot be built."""

    def __init__(self, source: RowSource, temperature: float) -> None:
        self.index = index_responses(source.responses.read(SampleGroup, "groups"))
        self.reference = _logps(source.reference_logps)
        self.behavior = _logps(source.behavior_logps)
        self.temperature = temperature

    def __getitem__(self, response_id: str) -> Side:
        prompt, sample = self.index[response_id]
        return Side(
            row=Row(prompt.token_ids, sample.token_ids),
            ref_logp=self.reference.get(response_id, float("nan")),
            behavior_logp=self._behavior_logp(prompt, sample),
            from_policy=sample.origin == "policy",
        )

    def _behavior_logp(self, prompt: Prompt, sample: Sample) -> float:
        """The trainer's own log-prob of the drawing policy; at another temperature, the sampler's recorded one."""
        if self.temperature != 1.0 and sample.logprobs:
            return float(sum(sample.logprobs))
        return self.behavior.get(sample.response_id, float("nan"))


def _logps(artifact: Artifact | None) -> Mapping[str, float]:
    return {} if artifact is None else read_logps(artifact)

"""The rows stage: single responses, with their labels, for losses whose unit is a response or a prompt's group."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sail.core.artifacts import Artifact, Keyed
from sail.core.records import (
    DatasetRating,
    DatasetVerdict,
    Message,
    Prompt,
    ResponseRow,
    Sample,
    SampleGroup,
    content_hash,
    index_responses,
)
from sail.core.route_settings import FilterSettings, HygieneSettings
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling.hygiene import (
    EMPTY,
    FILTERED,
    HELD_OUT,
    TRUNCATED,
    UNRATED,
    nothing_left,
    sample_recipe,
    trained_on,
    usable,
)
from sail.labeling.mismatch import mismatched, mismatched_groups
from sail.labeling.ratings import Rater, RatingOptions, Ratings, targets
from sail.labeling.tagging import Tagging, tagged_groups, with_tags

VERSION = 3


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How a route makes its rows, in one record."""

    rating: RatingOptions | None = None  # None: no labels
    filter: FilterSettings | None = None
    mismatch: bool = False  # KTO: each row gets a response of another prompt
    tagging: Tagging | None = None  # conditional alignment
    seed: int = 0
    round_index: int = 0
    hygiene: HygieneSettings = field(default_factory=HygieneSettings)
    where: str = "routes"  # names the route in errors; in no key

    def recipe(self, labeler: Rater | None) -> dict[str, Any]:
        recipe: dict[str, Any] = sample_recipe(self.hygiene) | {"round_index": self.round_index}
        if self.rating is not None:
            recipe["rating"] = self.rating.recipe()
            if labeler is not None:
                recipe["labeler"] = labeler.recipe(self.rating.kind)
        if self.filter is not None:
            recipe["filter"] = self.filter.recipe()
        if self.tagging is not None:
            recipe["tag"] = self.tagging.recipe()
        if self.mismatch or self.tagging is not None:
            recipe |= {"mismatch": self.mismatch, "seed": self.seed}
        return recipe


def response_rows(
    builder: Builder,
    responses: Artifact,
    labeler: Rater | None,
    options: RowOptions,
    held_out: Artifact | None = None,
) -> Artifact:
    """Table "rows" of ResponseRow: what a pointwise loss learns from, each response once, in the groups' order.

    Without a labeler: of a preference dataset the responses that some verdict chose; of prompts without a verdict
    (demonstrations, samples of the policy) all. With one: every response that it rates, targets by options.rating.
    None to a prompt that `held_out`, a prompts artifact, holds out. Truncated and empty responses go by hygiene, then
    options.filter looks at the targets; all counted. Further tables (SampleGroup): "groups" with tagged prompts where
    options.tagging is set, "mismatched" where options.mismatch is. UserError if nothing is left.
    """

    def run(workspace: Workspace) -> dict[str, float]:
        drops: Counter[str] = Counter(dict.fromkeys((TRUNCATED, EMPTY, HELD_OUT, UNRATED, FILTERED), 0))
        whole = trained_on(responses.read(SampleGroup, "groups"), held_out, drops)
        groups = _kept(whole if labeler else _chosen(whole, responses), options.hygiene, drops)
        rows, counts = _rows(groups, None if labeler is None else labeler.read(responses), options, drops)
        if not rows:
            raise nothing_left("response", len(whole), drops, options.where)
        index = index_responses(groups)
        if options.mismatch:
            rows = mismatched(rows, options.seed, options.where)
            workspace.write("mismatched", mismatched_groups(rows, index), SampleGroup)
        if options.tagging is not None:
            rows = with_tags(rows, options.tagging, options.seed)
            workspace.write("groups", tagged_groups(rows, index, options.tagging), SampleGroup)
        workspace.write("rows", rows, ResponseRow)
        return {"rows": len(rows), **counts, **drops}

    inputs: dict[str, Keyed] = {"responses": responses}
    if labeler is not None:
        inputs |= labeler.inputs()
    if held_out is not None:
        inputs["held_out"] = held_out
    if options.tagging is not None:
        inputs |= options.tagging.inputs()
    return builder.build(Recipe("rows", VERSION, options.recipe(labeler), inputs), run)


def _chosen(groups: Sequence[SampleGroup], responses: Artifact) -> list[SampleGroup]:
    """What an unlabelled stream learns from: of prompts with verdicts the chosen responses, of others all but those
    with a thumb down."""
    verdicts = responses.read(DatasetVerdict, "verdicts")  # empty where no dataset was asked
    judged = {verdict.prompt_id for verdict in verdicts}
    chosen = {verdict.chosen_id for verdict in verdicts if not verdict.is_tie}
    down = {rating.response_id for rating in responses.read(DatasetRating, "ratings") if rating.thumb is False}

    def wanted(prompt: Prompt, sample: Sample) -> bool:
        return sample.response_id in chosen if prompt.prompt_id in judged else sample.response_id not in down

    return [SampleGroup(g.prompt, tuple(sample for sample in g.samples if wanted(g.prompt, sample))) for g in groups]


def _kept(groups: Sequence[SampleGroup], hygiene: HygieneSettings, drops: Counter[str]) -> list[SampleGroup]:
    return [SampleGroup(group.prompt, tuple(usable(group.samples, hygiene, drops))) for group in groups]


def _rows(
    groups: Sequence[SampleGroup], ratings: Ratings | None, options: RowOptions, drops: Counter[str]
) -> tuple[list[ResponseRow], dict[str, float]]:
    if ratings is None or options.rating is None:
        return [_row(group.prompt, sample, options) for group in groups for sample in group.samples], {}
    known, counts = targets(groups, ratings, options.rating, options.where)
    rows = []
    for group in groups:
        rated = [sample for sample in group.samples if sample.response_id in known]
        drops[UNRATED] += len(group.samples) - len(rated)
        kept = filtered(rated, known, options.filter)
        drops[FILTERED] += len(rated) - len(kept)
        rows += [_row(group.prompt, sample, options, ratings, known[sample.response_id]) for sample in kept]
    return rows, counts


def filtered(samples: Sequence[Sample], known: Mapping[str, float], settings: FilterSettings | None) -> list[Sample]:
    """The samples of one prompt that a filter keeps, in their order; equal targets are kept or dropped together."""
    if settings is None or not samples:
        return list(samples)
    values = np.array([known[sample.response_id] for sample in samples])
    if settings.threshold is not None:
        return [sample for sample, value in zip(samples, values, strict=True) if value > settings.threshold]
    if settings.top_k is not None:
        limit = np.sort(values)[-min(settings.top_k, len(values))]
    else:
        limit = np.quantile(values, settings.quantile or 0.0)
    return [sample for sample, value in zip(samples, values, strict=True) if value >= limit]


def _row(
    prompt: Prompt, sample: Sample, options: RowOptions, ratings: Ratings | None = None, target: float | None = None
) -> ResponseRow:
    rating = None if ratings is None else ratings.by_response[sample.response_id]
    return ResponseRow(
        row_id=f"row-{content_hash([prompt.prompt_id, sample.response_id])}",
        prompt_id=prompt.prompt_id,
        response_id=sample.response_id,
        round_index=options.round_index,
        labeler="" if ratings is None else ratings.labeler,
        labeler_digest="" if ratings is None else ratings.digest,
        score=None if rating is None else rating.score,
        target=target,
        tag="",
        mismatched_id="",
        prompt=prompt.messages,
        completion=(Message(role="assistant", content=sample.text),),
    )

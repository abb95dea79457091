"""The scores stage: every response of an artifact, scored once by one labeler, in shards that survive a kill."""

import math
from collections.abc import Sequence
from typing import Any

from sail.core.artifacts import Artifact
from sail.core.records import Example, SampleGroup, ScoredGroup
from sail.core.run_settings import LabelerSettings
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling import LABELERS, Labeler
from sail.labeling.answers import sort_answers
from sail.labeling.labeler_row import Scorer
from sail.policy.devices import free_memory

VERSION = 2
_TABLE = "scores"


def make_labeler(name: str, settings: LabelerSettings, made_here: Any = None) -> Labeler:
    """The labeler `labelers.<name>` of a run, one that scores responses.

    made_here: for a reward model its RewardOrigin (its checkpoint, its server), for a judge at url: policy the
    endpoint of the policy.

    Hashes the user's files and looks a callable up, loads no model. UserError where the model, module or function
    does not exist.
    """
    make = LABELERS[settings.kind].scores
    assert make is not None, f"{settings.kind} scores no responses by itself"
    return make(name, settings, made_here)


def score_responses(builder: Builder, responses: Artifact, labeler: Labeler, *, shard_size: int = 64) -> Artifact:
    """Scores of all responses in `responses` (table "groups"): table "scores" of ScoredGroup, in the groups' order.

    shard_size: groups per committed shard. A killed attempt's shards are kept, their responses not asked again.
    """

    def run(workspace: Workspace) -> dict[str, float]:
        groups = responses.read(SampleGroup, "groups")
        done = _committed_shards(workspace)
        scored = [group for shard in done for group in workspace.read(shard, ScoredGroup)]
        _assert_begins_with(groups, scored)
        scorer = labeler.open(workspace) if len(scored) < len(groups) else None
        while scorer is not None and len(scored) < len(groups):
            shard = _score_groups(scorer, groups[len(scored) : len(scored) + shard_size])
            workspace.write(f"{_TABLE}-{len(done):05d}", shard, ScoredGroup)
            done.append(f"{_TABLE}-{len(done):05d}")
            scored += shard
            workspace.say(f"{labeler.name} scored {len(scored)} of {len(groups)} prompts")
        del scorer
        free_memory()
        sort_answers(workspace.path)
        return _counts(scored)

    recipe = Recipe("scores", VERSION, labeler.recipe, {"responses": responses, "labeler": labeler.source})
    return builder.build(recipe, run)


def _committed_shards(workspace: Workspace) -> list[str]:
    return sorted(path.stem for path in workspace.path.glob(f"{_TABLE}-*.parquet"))


def _assert_begins_with(groups: Sequence[SampleGroup], scored: Sequence[ScoredGroup]) -> None:
    ids = [tuple(sample.response_id for sample in group.samples) for group in groups[: len(scored)]]
    assert ids == [group.response_ids for group in scored], "shards of other responses under the same key"


def _score_groups(scorer: Scorer, groups: Sequence[SampleGroup]) -> list[ScoredGroup]:
    examples = {
        sample.response_id: Example(group.prompt.messages, sample.text, sample.finished)
        for group in groups
        for sample in group.samples
    }
    values = scorer(list(examples.values())) if examples else []
    scores = dict(zip(examples, values, strict=True))
    return [
        ScoredGroup(
            group.prompt.prompt_id,
            tuple(sample.response_id for sample in group.samples),
            tuple(scores[sample.response_id] for sample in group.samples),
        )
        for group in groups
    ]


def _counts(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    given = [score for group in scored for score in group.scores]
    scores = [score for score in given if not math.isnan(score)]
    counts: dict[str, float] = {"prompts": len(scored), "responses": len(given)}
    if len(scores) < len(given):
        counts["errors"] = len(given) - len(scores)
    return counts | ({"mean_score": sum(scores) / len(scores)} if scores else {})

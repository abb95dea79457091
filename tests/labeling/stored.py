"""Data, samples, scores and log-probs as committed artifacts of a real store."""

from collections.abc import Mapping, Sequence

from sail.core.artifacts import Artifact
from sail.core.records import DatasetVerdict, PreferencePair, ResponseLogps, SampleGroup, ScoredGroup, content_hash
from sail.core.store import Recipe, Store, Workspace
from sail.labeling import Evidence, ScoreEvidence
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses

from .doubles import make_group


def write_groups(
    store: Store,
    groups: Sequence[SampleGroup],
    verdicts: Sequence[DatasetVerdict] | None = None,
    shard_size: int | None = None,
) -> Artifact:
    """A data artifact (with verdicts) or a samples artifact (without), its groups in one table or in shards."""

    def run(workspace: Workspace) -> dict[str, int]:
        if shard_size is None:
            workspace.write("groups", groups, SampleGroup)
        else:
            for start in range(0, len(groups), shard_size):
                workspace.write(f"groups-{start:05d}", groups[start : start + shard_size], SampleGroup)
        if verdicts is not None:
            workspace.write("verdicts", verdicts, DatasetVerdict)
        return {}

    settings = {"content": content_hash([repr(groups), repr(verdicts), shard_size])}
    return store.build(Recipe("samples" if verdicts is None else "data", 1, settings, {}), run)


def write_data(store: Store, rows: Sequence[tuple[str, str, str]]) -> Artifact:
    """A preference dataset of (prompt, chosen, rejected), each prompt once; the response ids end in -0 and -1."""
    groups = [make_group(prompt, chosen, rejected, stop_kind="dataset") for prompt, chosen, rejected in rows]
    return write_groups(store, groups, [verdict_of(group) for group in groups])


def verdict_of(group: SampleGroup, scores: tuple[float, float] | None = None) -> DatasetVerdict:
    """The first response of the group beats the second."""
    chosen, rejected = group.samples[:2]
    score_chosen, score_rejected = scores or (None, None)
    return DatasetVerdict(
        group.prompt.prompt_id, chosen.response_id, rejected.response_id, score_chosen, score_rejected
    )


def write_scores(
    store: Store, groups: Sequence[SampleGroup], scores: Mapping[str, float], shard_size: int = 2
) -> Artifact:
    scored = []
    for group in groups:
        ids = tuple(sample.response_id for sample in group.samples)
        scored.append(ScoredGroup(group.prompt.prompt_id, ids, tuple(scores[id_] for id_ in ids)))

    def run(workspace: Workspace) -> dict[str, int]:
        for start in range(0, len(scored), shard_size):
            workspace.write(f"scores-{start:05d}", scored[start : start + shard_size], ScoredGroup)
        return {}

    return store.build(Recipe("scores", 1, {"content": content_hash([repr(scored), shard_size])}, {}), run)


def write_logps(store: Store, logps: Mapping[str, float]) -> Artifact:
    def run(workspace: Workspace) -> dict[str, int]:
        workspace.write("logps", [ResponseLogps(name, logp, 3) for name, logp in logps.items()], ResponseLogps)
        return {}

    return store.build(Recipe("logps", 1, dict(logps), {}), run)


def read_pairs(artifact: Artifact) -> list[PreferencePair]:
    return artifact.read(PreferencePair, "pairs")


def scored(store: Store, groups: Sequence[SampleGroup], *scores: float, temperature: float = 1.0) -> ScoreEvidence:
    """Scores in the order of all samples of all groups."""
    ids = [sample.response_id for group in groups for sample in group.samples]
    artifact = write_scores(store, groups, dict(zip(ids, scores, strict=True)))
    return ScoreEvidence(artifact, "rm", "d1g357", temperature)


def pairs_of(store: Store, responses: Artifact, evidence: Evidence, options: PairingOptions) -> list[PreferencePair]:
    """The records of one run of the pairs stage."""
    return read_pairs(pair_responses(store, responses, evidence, options))

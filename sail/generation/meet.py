"""Responses of several origins to one prompt as one group: demonstrations and samples, policy and reference."""

from collections.abc import Mapping, Sequence

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import DatasetVerdict, Sample, SampleGroup
from sail.core.store import Builder, Recipe, Workspace

VERSION = 1


def meet_responses(builder: Builder, sources: Sequence[Artifact], where: str, *, rejected: bool = False) -> Artifact:
    """Table groups: the prompts that every source answers, each with all its responses, sources in their order.

    Of a dataset with verdicts the chosen responses alone take part, or with `rejected` all of them, where somebody
    else is to rank them. UserError where no prompt is answered by all.
    """

    def run(workspace: Workspace) -> dict[str, int]:
        answers = [_answers(source, rejected) for source in sources]
        shared = [prompt_id for prompt_id in answers[-1] if all(prompt_id in known for known in answers)]
        if not shared:
            raise UserError(
                "no prompt is answered by all sources of the list", where=where,
                cure="Sample the prompts of the data source: prompts: {from: <that source>}",
            )  # fmt: skip
        groups = [_joined([known[prompt_id] for known in answers]) for prompt_id in shared]
        workspace.write("groups", groups, SampleGroup)
        return {"prompts": len(groups), "responses": sum(len(group.samples) for group in groups)}

    inputs = {str(position): source for position, source in enumerate(sources)}
    return builder.build(Recipe("responses", VERSION, {"rejected": True} if rejected else {}, inputs), run)


def _answers(source: Artifact, with_rejected: bool) -> Mapping[str, SampleGroup]:
    """prompt_id -> its group, prompts without a response left out."""
    verdicts = [] if with_rejected else source.read(DatasetVerdict, "verdicts")
    rejected = {verdict.rejected_id for verdict in verdicts}
    chosen = {verdict.chosen_id for verdict in verdicts}
    groups = {}
    for group in source.read(SampleGroup, "groups"):
        kept = tuple(s for s in group.samples if s.response_id in chosen or s.response_id not in rejected)
        if kept:
            groups[group.prompt.prompt_id] = SampleGroup(group.prompt, kept)
    return groups


def _joined(groups: Sequence[SampleGroup]) -> SampleGroup:
    """Equal responses of different sources keep apart: each counts as what its origin drew."""
    samples: list[Sample] = [sample for group in groups for sample in group.samples]
    return SampleGroup(groups[-1].prompt, tuple(samples))

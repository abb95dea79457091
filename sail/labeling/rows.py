"""The rows stage: single responses, for losses whose unit is a response (sft)."""

from collections import Counter
from collections.abc import Sequence

from sail.core.artifacts import Artifact
from sail.core.records import DatasetVerdict, Message, Prompt, ResponseRow, Sample, SampleGroup, content_hash
from sail.core.run_settings import HygieneSettings
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling.hygiene import EMPTY, HELD_OUT, TRUNCATED, nothing_left, sample_recipe, trained_on, usable

VERSION = 1


def response_rows(
    builder: Builder,
    responses: Artifact,
    *,
    round_index: int = 0,
    hygiene: HygieneSettings | None = None,
    where: str = "routes",
    held_out: Artifact | None = None,
) -> Artifact:
    """Table "rows" of ResponseRow: what a pointwise loss learns from, each response once, in the groups' order.

    Of a preference dataset the responses that some verdict chose; of prompts without a verdict (demonstrations,
    samples of the policy) all; none to a prompt that `held_out`, a prompts artifact, holds out. Truncated and empty
    responses go by `hygiene`, counted. where: names the route in errors. UserError if nothing is left.
    """
    settings = hygiene or HygieneSettings()

    def run(workspace: Workspace) -> dict[str, int]:
        drops: Counter[str] = Counter({TRUNCATED: 0, EMPTY: 0, HELD_OUT: 0})
        groups = trained_on(responses.read(SampleGroup, "groups"), held_out, drops)
        verdicts = responses.read(DatasetVerdict, "verdicts")  # empty where no dataset was asked
        judged = {verdict.prompt_id for verdict in verdicts}
        chosen = {verdict.chosen_id for verdict in verdicts}
        rows = [
            _row(group.prompt, sample, round_index)
            for group in groups
            for sample in usable(_wanted(group, judged, chosen), settings, drops)
        ]
        if not rows:
            raise nothing_left("response", len(groups), drops, where)
        workspace.write("rows", rows, ResponseRow)
        return {"rows": len(rows), **drops}

    recipe = sample_recipe(settings) | {"round_index": round_index}
    inputs = {"responses": responses} if held_out is None else {"responses": responses, "held_out": held_out}
    return builder.build(Recipe("rows", VERSION, recipe, inputs), run)


def _wanted(group: SampleGroup, judged: set[str], chosen: set[str]) -> Sequence[Sample]:
    if group.prompt.prompt_id not in judged:
        return group.samples
    return [sample for sample in group.samples if sample.response_id in chosen]


def _row(prompt: Prompt, sample: Sample, round_index: int) -> ResponseRow:
    return ResponseRow(
        row_id=f"row-{content_hash([prompt.prompt_id, sample.response_id])}",
        prompt_id=prompt.prompt_id,
        response_id=sample.response_id,
        round_index=round_index,
        prompt=prompt.messages,
        completion=(Message(role="assistant", content=sample.text),),
    )

"""The log-prob stage: responses scored once under a checkpoint, stored, and shared by whoever asks again.

Reference log-probs of the update, behaviour log-probs of importance weights, the policy's implicit reward and the
evaluation's log-ratio are all this stage, on some responses, under some checkpoint.
"""

from collections.abc import Sequence

import torch

from sail.core.artifacts import Artifact
from sail.core.records import ResponseLogps, SampleGroup
from sail.core.store import Builder, Recipe, Workspace
from sail.policy.devices import free_memory, to_device
from sail.policy.loading import Checkpoint, load_policy
from sail.policy.logprobs import microbatches, sequence_logps
from sail.policy.rows import Row

VERSION = 3


def score_logps(
    builder: Builder,
    responses: Artifact,
    checkpoint: Checkpoint,
    *,
    bf16: bool = False,
    max_tokens: int = 16384,
    table: str = "groups",
) -> Artifact:
    """log pi of every response in a table (SampleGroup) of `responses` under `checkpoint`."""

    def run(workspace: Workspace) -> dict[str, int]:
        groups = responses.read(SampleGroup, table)
        scores = logps_of(load_policy(checkpoint), groups, bf16=bf16, max_tokens=max_tokens)
        free_memory()
        workspace.write("logps", scores, ResponseLogps)
        return {"responses": len(scores), "tokens": sum(score.num_tokens for score in scores)}

    settings = {"bf16": bf16, "table": table}
    recipe = Recipe("logps", VERSION, settings, {"responses": responses, "checkpoint": checkpoint})
    return builder.build(recipe, run)


def logps_of(
    model: torch.nn.Module, groups: Sequence[SampleGroup], *, bf16: bool = False, max_tokens: int = 16384
) -> list[ResponseLogps]:
    """Score every response of the groups, in their order."""
    device = to_device(model)
    pairs = [(group.prompt, sample) for group in groups for sample in group.samples]
    rows = [Row(prompt.token_ids, sample.token_ids) for prompt, sample in pairs]
    logps = torch.zeros(len(rows), dtype=torch.float64)
    for batch in microbatches(model, [[row] for row in rows], max_tokens):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logps[batch] = sequence_logps(model, [rows[index] for index in batch]).cpu()
    return [
        ResponseLogps(sample.response_id, logp, len(sample.token_ids))
        for (_, sample), logp in zip(pairs, logps.tolist(), strict=True)
    ]


def read_logps(artifact: Artifact) -> dict[str, float]:
    """response_id -> log pi."""
    return {record.response_id: record.logp for record in artifact.read(ResponseLogps, "logps")}

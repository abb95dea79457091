"""The log-prob stage: responses scored once under a checkpoint, stored, and shared by whoever asks again.

Reference log-probs of the update, behaviour log-probs of importance weights, the policy's implicit reward and the
evaluation's log-ratio are all this stage, on some responses, under some checkpoint.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sail.core.artifacts import Artifact
from sail.core.records import ResponseLogps, SampleGroup
from sail.core.store import Builder, Recipe, Workspace
from sail.policy.devices import compute_device, free_memory, to_device
from sail.policy.loading import Checkpoint, load_policy
from sail.policy.logprobs import microbatches, sequence_logps
from sail.policy.rows import Row

VERSION = 4


@dataclass(frozen=True)
class ScoringInputs:
    """Everything the log-probs of a table (SampleGroup) of responses are made from."""

    responses: Artifact
    checkpoint: Checkpoint
    bf16: bool = False
    max_tokens: int = 16384  # of a forward pass
    table: str = "groups"


def scoring_recipe(inputs: ScoringInputs) -> Recipe:
    settings = {"bf16": inputs.bf16, "table": inputs.table}
    return Recipe("logps", VERSION, settings, {"responses": inputs.responses, "checkpoint": inputs.checkpoint})


def score_here(workspace: Workspace, inputs: ScoringInputs) -> dict[str, Any]:
    """Fill the workspace with the table "logps"; returns the figures for the manifest."""
    groups = inputs.responses.read(SampleGroup, inputs.table)
    scores = logps_of(load_policy(inputs.checkpoint), groups, bf16=inputs.bf16, max_tokens=inputs.max_tokens)
    free_memory()
    return write_scores(workspace, scores)


def score_logps(
    builder: Builder,
    responses: Artifact,
    checkpoint: Checkpoint,
    *,
    bf16: bool = False,
    max_tokens: int = 16384,
    table: str = "groups",
    score: Callable[[Workspace, ScoringInputs], dict[str, Any]] = score_here,
) -> Artifact:
    """log pi of every response in a table (SampleGroup) of `responses` under `checkpoint`.

    score: who does it; default this process.
    """
    inputs = ScoringInputs(responses, checkpoint, bf16, max_tokens, table)
    return builder.build(scoring_recipe(inputs), lambda workspace: score(workspace, inputs))


def logps_of(
    model: torch.nn.Module, groups: Sequence[SampleGroup], *, bf16: bool = False, max_tokens: int = 16384
) -> list[ResponseLogps]:
    """Score every response of the groups, in their order."""
    to_device(model)
    rows = rows_of(groups)
    batches = microbatches(model, [[row] for row in rows], max_tokens)
    return scores_of(groups, batch_logps(model, rows, batches, bf16=bf16))


def rows_of(groups: Sequence[SampleGroup]) -> list[Row]:
    return [Row(group.prompt.token_ids, sample.token_ids) for group in groups for sample in group.samples]


def batch_logps(model: torch.nn.Module, rows: Sequence[Row], batches: Iterable[list[int]], *, bf16: bool) -> Tensor:
    """[R] float64: log pi of the rows that are in a batch, and 0 for the others."""
    logps = torch.zeros(len(rows), dtype=torch.float64)
    for batch in batches:
        with torch.no_grad(), torch.autocast(compute_device().type, torch.bfloat16, enabled=bf16):
            logps[batch] = sequence_logps(model, [rows[index] for index in batch]).cpu()
    return logps


def scores_of(groups: Sequence[SampleGroup], logps: Tensor) -> list[ResponseLogps]:
    samples = [sample for group in groups for sample in group.samples]
    return [
        ResponseLogps(sample.response_id, logp, len(sample.token_ids))
        for sample, logp in zip(samples, logps.tolist(), strict=True)
    ]


def write_scores(workspace: Workspace, scores: Sequence[ResponseLogps]) -> dict[str, int]:
    workspace.write("logps", scores, ResponseLogps)
    return {"responses": len(scores), "tokens": sum(score.num_tokens for score in scores)}


def read_logps(artifact: Artifact) -> dict[str, float]:
    """response_id -> log pi."""
    return {record.response_id: record.logp for record in artifact.read(ResponseLogps, "logps")}

"""The rollouts stage: what PPO knows of every sampled token before its update, computed once and stored.

Log-probs under the policy that drew the samples and under the reference, the value network's estimates, advantages and
returns. An update that goes on after a kill finds them where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sail.core.artifacts import Artifact
from sail.core.records import ResponseRow, RolloutTokens, SampleGroup, index_responses
from sail.core.route_settings import LossSettings
from sail.core.store import Builder, Recipe, Workspace
from sail.objectives import find_loss
from sail.objectives.responses import Trajectory
from sail.objectives.statistics import accepted
from sail.policy.devices import to_device
from sail.policy.loading import Checkpoint, load_policy
from sail.policy.logprobs import microbatches, token_logps
from sail.policy.rows import Row, split_by_tokens
from sail.policy.value import Per, value_model_of

VERSION = 2


@dataclass(frozen=True, slots=True)
class RolloutInputs:
    """What a round's estimates are made from."""

    responses: Artifact  # groups: a samples artifact
    rows: Artifact  # ResponseRow, with scores as targets
    policy: Checkpoint  # which drew the samples; with its value network
    reference: Checkpoint
    loss: LossSettings
    per: Per  # of a new value network
    bf16: bool = False
    max_tokens: int = 16384


def estimate_rollouts(builder: Builder, inputs: RolloutInputs) -> Artifact:
    """Table "rollouts" of RolloutTokens, one for every row."""
    estimate = find_loss(inputs.loss.type).rollouts
    assert estimate is not None, "asked for by losses that learn from them"
    params = accepted(estimate, {**find_loss(inputs.loss.type).params, **inputs.loss.params})

    def run(workspace: Workspace) -> dict[str, float]:
        labelled = inputs.rows.read(ResponseRow, "rows")
        trajectories = _trajectories(labelled, inputs)
        rollouts = estimate(trajectories, **params)
        records = [
            RolloutTokens(
                row.response_id,
                *map(_floats, (was.logps, was.ref_logps, was.values, found.advantages, found.returns)),
            )
            for row, was, found in zip(labelled, trajectories, rollouts, strict=True)
        ]
        workspace.write("rollouts", records, RolloutTokens)
        return {"responses": len(records), "tokens": sum(len(record.returns) for record in records)}

    settings = {"loss": inputs.loss.type, "params": params, "per": inputs.per, "bf16": inputs.bf16}
    sources = {
        "responses": inputs.responses, "rows": inputs.rows, "policy": inputs.policy, "reference": inputs.reference,
    }  # fmt: skip
    return builder.build(Recipe("rollouts", VERSION, settings, sources), run)


def _trajectories(labelled: Sequence[ResponseRow], inputs: RolloutInputs) -> list[Trajectory]:
    """One network after the other, so that only one is in memory."""
    index = index_responses(inputs.responses.read(SampleGroup, "groups"))
    pairs = [index[row.response_id] for row in labelled]
    rows = [Row(prompt.token_ids, sample.token_ids) for prompt, sample in pairs]

    def log_probs(checkpoint: Checkpoint) -> list[Tensor]:
        model = load_policy(checkpoint)
        parts = microbatches(model, [[row] for row in rows], inputs.max_tokens)
        return _per_token(model, lambda part: token_logps(model, part).logps, rows, parts, inputs.bf16)

    logps, ref_logps = log_probs(inputs.policy), log_probs(inputs.reference)
    critic = value_model_of(inputs.policy, inputs.per)
    padded = split_by_tokens([row.num_tokens for row in rows], inputs.max_tokens)
    values = _per_token(critic, critic, rows, padded, inputs.bf16)
    targets = [float("nan") if row.target is None else row.target for row in labelled]
    return [Trajectory(*each) for each in zip(logps, ref_logps, values, targets, strict=True)]


def _per_token(
    network: torch.nn.Module,
    read: Callable[[Sequence[Row]], Tensor],
    rows: Sequence[Row],
    parts: Sequence[Sequence[int]],
    bf16: bool,
) -> list[Tensor]:
    """What `read` says of the response tokens of every row, float64, one forward pass a part."""
    device = to_device(network)
    found: dict[int, Tensor] = {}
    for part in parts:
        chosen = [rows[index] for index in part]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            tokens = read(chosen).double().cpu()
        found |= zip(part, tokens.split([len(row.response_ids) for row in chosen]), strict=True)
    return [found[index] for index in range(len(rows))]


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def read_rollouts(artifact: Artifact) -> dict[str, RolloutTokens]:
    """response_id -> what is estimated of its tokens."""
    return {record.response_id: record for record in artifact.read(RolloutTokens, "rollouts")}

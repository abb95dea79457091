"""The log-prob stage in several processes: reference log-probs, policy labels, behaviour log-probs.

The microbatches are those of one process, dealt out in turn, so with whole copies every number is the one that a
process alone computes, however many there are. fsdp2 gathers weights in every forward pass, so there a process with
fewer microbatches repeats one and throws it away.
"""

from typing import Any

import torch

from sail.core.records import SampleGroup
from sail.core.store import Workspace
from sail.policy.loading import load_policy
from sail.policy.logprobs import microbatches
from sail.policy.scoring import ScoringInputs, batch_logps, rows_of, scores_of, write_scores
from sail.update.distributed import make_accelerator, prepared, refuse_this, sharded, summed


def score(workspace: Workspace, inputs: ScoringInputs) -> dict[str, Any]:
    """As one of the processes; the first one writes the table."""
    accelerator = make_accelerator(inputs.bf16)
    refuse_this(accelerator, ())
    groups = inputs.responses.read(SampleGroup, inputs.table)
    rows, policy = rows_of(groups), load_policy(inputs.checkpoint, trainable=True)
    batches = microbatches(policy, [[row] for row in rows], inputs.max_tokens)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    # accelerate shards a model only together with an optimizer of trainable weights; this one never steps
    model, _ = prepared(accelerator, policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    logps = batch_logps(model, rows, mine, bf16=inputs.bf16)
    if sharded(accelerator) and len(mine) < -(-len(batches) // accelerator.num_processes):
        batch_logps(model, rows, batches[-1:], bf16=inputs.bf16)
    scores = scores_of(groups, summed(accelerator, logps))
    if accelerator.is_main_process:
        write_scores(workspace, scores)
    return {"responses": len(scores), "tokens": sum(score.num_tokens for score in scores)}

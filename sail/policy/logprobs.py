"""Log-probabilities of responses: the one place the project computes them.

Every stage that needs log pi(y|x) (update, reference scoring, policy labels, evaluation, the check of a server's
weights) comes here. The body's hidden states are scored at response positions only, by a head that never holds the
logits (fused_head); a model whose head is not known gives full logits instead (architectures says which).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sail.policy.architectures import bare_model, fused_head_of, logit_transform
from sail.policy.fused_head import fused_logps
from sail.policy.rows import Row, pad_rows


class ResponseTokens(NamedTuple):
    """Per-token results of a batch of rows, response tokens only, rows after one another."""

    logps: Tensor  # [N] float32, log pi(token | everything before it), nats
    row_index: Tensor  # [N] int64, which row a token belongs to


def sequence_logps(model: torch.nn.Module, rows: Sequence[Row]) -> Tensor:
    """log pi(y|x) = sum over response tokens, EOS included where it was emitted; [len(rows)] float64, nats.

    Summed in float64: about 160 terms of size 10 summed in float32 lose 1e-5 of the loss.
    """
    tokens = token_logps(model, rows)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=tokens.logps.device)
    return sums.index_add(0, tokens.row_index, tokens.logps.double())


def token_logps(model: torch.nn.Module, rows: Sequence[Row]) -> ResponseTokens:
    """log pi of every response token at temperature 1."""
    bare = bare_model(model)
    head = fused_head_of(bare)
    if head is None:
        return full_logits_logps(model, rows)
    batch = pad_rows(rows, next(model.parameters()).device)
    transform = logit_transform(bare.config)

    def score(hidden: Tensor) -> Tensor:
        return fused_logps(hidden[batch.row_index, batch.position - 1], head, batch.target, transform)

    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return ResponseTokens(_at_the_head(model, head, score, inputs), batch.row_index)


def _at_the_head(
    model: torch.nn.Module, head: torch.nn.Module, score: Callable[[Tensor], Tensor], inputs: dict[str, Any]
) -> Tensor:
    """score(hidden states [R, T, H]) inside the model's own forward, whose head then gets no rows to work on.

    Inside, because wrappers (DDP, FSDP, ZeRO) gather weights and hook gradients round that forward; the sum over the
    empty logits is an exact 0 which ties the result to the output they watch.
    """
    scores: list[Tensor] = []

    def before_head(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        scores.append(score(args[0]))
        return (args[0][:0],)

    hook = head.register_forward_pre_hook(before_head)
    try:
        empty_logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    (result,) = scores
    return result + empty_logits.sum()


def full_logits_logps(model: torch.nn.Module, rows: Sequence[Row]) -> ResponseTokens:
    """token_logps from full logits: for every architecture, and what the fast paths are measured against."""
    logits, targets, row_index = response_logits(model, rows)
    logps = torch.log_softmax(logits.float(), dim=-1)
    return ResponseTokens(logps.gather(-1, targets[:, None]).squeeze(-1), row_index)


def response_logits(model: torch.nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V] at the positions that predict response tokens, the tokens [N], and their rows [N]."""
    device = next(model.parameters()).device
    batch = pad_rows(rows, device)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits[batch.row_index, batch.position - 1], batch.target, batch.row_index


def sequence_kls(policy: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]) -> Tensor:
    """sum_t KL(policy(.|s_t) || reference(.|s_t)) along each response, full vocabulary; [len(rows)] float64, nats."""
    logits, _, row_index = response_logits(policy, rows)
    logps = torch.log_softmax(logits.float(), dim=-1)
    ref_logps = torch.log_softmax(response_logits(reference, rows)[0].float(), dim=-1)
    kls = (logps.exp() * (logps - ref_logps)).sum(-1)
    return torch.zeros(len(rows), dtype=torch.float64, device=kls.device).index_add(0, row_index, kls.double())

"""Log-probabilities of responses: the one place the project computes them.

Every stage that needs log pi(y|x) (update, reference scoring, policy labels, evaluation, the check of a server's
weights) comes here. Rows with one prompt run it once, without padding (trees); the hidden states that predict response
tokens are scored by a head that never holds the logits (fused_head). A model that takes no trees has its rows padded,
one whose head is not known gives full logits; architectures decides and says so. An encoder-decoder reads each prompt
once and has its responses padded (encoder_decoder).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sail.policy.architectures import bare_model, cast_experts, fused_head_of, logit_transform, takes_trees
from sail.policy.encoder_decoder import decoder_rows, each_prompt_once, start_id
from sail.policy.fused_head import fused_logps, head_of
from sail.policy.rows import Row, ScoredBatch, padded_microbatches, padded_rows, tree_microbatches
from sail.policy.token_statistics import TokenStatistics, token_statistics
from sail.policy.trees import tree_rows


class ResponseTokens(NamedTuple):
    """Per-token results of a batch of rows, response tokens only, rows after one another."""

    logps: Tensor  # [N] float32, log pi(token | everything before it), nats
    row_index: Tensor  # [N] int64, which row a token belongs to
    statistics: TokenStatistics | None = None  # where they were asked for


def sequence_logps(model: torch.nn.Module, rows: Sequence[Row]) -> Tensor:
    """log pi(y|x) = sum over response tokens, EOS included where it was emitted; [len(rows)] float64, nats.

    Summed in float64: about 160 terms of size 10 summed in float32 lose 1e-5 of the loss.
    """
    tokens = token_logps(model, rows)
    return _row_sums(tokens.logps, tokens.row_index, len(rows))


def token_logps(model: torch.nn.Module, rows: Sequence[Row], *, statistics: bool = False) -> ResponseTokens:
    """log pi of every response token at temperature 1; statistics: entropy and top-1 too."""
    head = fused_head_of(bare_model(model))
    if head is None:
        return full_logits_logps(model, rows, statistics=statistics)
    return fused_head_logps(model, head, batch_of(model, rows), statistics=statistics)


def fused_head_logps(
    model: torch.nn.Module, head: torch.nn.Linear, batch: ScoredBatch, *, statistics: bool = False
) -> ResponseTokens:
    """token_logps of a model with a known head, from trees or padded rows."""
    transform = logit_transform(bare_model(model).config)
    scores: list[Tensor] = []
    beside: list[TokenStatistics] = []

    def score(hidden: Tensor) -> Tensor:
        scored = batch.at_scored(hidden)
        scores.append(fused_logps(scored, head, batch.target, transform))
        if statistics:
            beside.append(token_statistics(head_of(scored, head.weight, head.bias, batch.target, transform)))
        return hidden[:0]

    empty_logits = _forward(model, head, score, batch)
    (logps,) = scores
    # the sum is an exact 0, and ties the result to the output that wrappers (FSDP) watch
    return ResponseTokens(logps + empty_logits.sum(), batch.row_index, beside[0] if beside else None)


def full_logits_logps(model: torch.nn.Module, rows: Sequence[Row], *, statistics: bool = False) -> ResponseTokens:
    """token_logps from padded rows and full logits: for every architecture, and the yardstick of the fast path."""
    batch = _padded(model, rows)
    logits = batch.at_scored(_logits(model, batch))
    all_logps = torch.log_softmax(logits.float(), dim=-1)
    logps = all_logps.gather(-1, batch.target[:, None]).squeeze(-1)
    beside = None
    if statistics:
        fixed = all_logps.detach()
        beside = TokenStatistics(-(fixed.exp() * fixed).sum(-1), (logps.detach() >= fixed.amax(-1)).float())
    return ResponseTokens(logps, batch.row_index, beside)


def response_logits(model: torch.nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V] at the positions that predict response tokens, the tokens [N], and their rows [N]."""
    batch, head = batch_of(model, rows), fused_head_of(bare_model(model))
    if head is None:
        logits = batch.at_scored(_logits(model, batch))
    else:
        logits = _forward(model, head, lambda hidden: batch.at_scored(hidden)[None], batch)[0]
    return logits, batch.target, batch.row_index


def sequence_kls(policy: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]) -> Tensor:
    """sum_t KL(policy(.|s_t) || reference(.|s_t)) along each response, full vocabulary; [len(rows)] float64, nats."""
    logits, _, row_index = response_logits(policy, rows)
    logps = torch.log_softmax(logits.float(), dim=-1)
    ref_logps = torch.log_softmax(response_logits(reference, rows)[0].float(), dim=-1)
    return _row_sums((logps.exp() * (logps - ref_logps)).sum(-1), row_index, len(rows))


def microbatches(model: torch.nn.Module, items: Sequence[Sequence[Row]], budget: int) -> list[list[int]]:
    """Positions of `items` (rows that stay together) in microbatches of at most `budget` tokens, as this model runs
    them: prompts once where it takes trees, else padded to the longest row."""
    if _runs_trees(model):
        return tree_microbatches(items, budget)
    return padded_microbatches(items, budget)


def _runs_trees(model: torch.nn.Module) -> bool:
    bare = bare_model(model)
    return fused_head_of(bare) is not None and takes_trees(bare)


def batch_of(model: torch.nn.Module, rows: Sequence[Row]) -> ScoredBatch:
    """The forward pass over the rows: trees where the model takes them."""
    if _runs_trees(model):
        return tree_rows(rows, _device(model))
    return _padded(model, rows)


def _padded(model: torch.nn.Module, rows: Sequence[Row]) -> ScoredBatch:
    config = bare_model(model).config
    if config.is_encoder_decoder:
        return decoder_rows(rows, start_id(config), _device(model))
    return padded_rows(rows, _device(model))


def _forward(
    model: torch.nn.Module, head: torch.nn.Module, change: Callable[[Tensor], Tensor], batch: ScoredBatch
) -> Tensor:
    """The model's logits when its head works on change(hidden states [B, T, H]).

    A hook in the model's own forward, because wrappers (DDP, FSDP, ZeRO) gather weights round that forward.
    """
    hook = head.register_forward_pre_hook(lambda _, args: (change(args[0]),))
    try:
        return _logits(model, batch)
    finally:
        hook.remove()


def _logits(model: torch.nn.Module, batch: ScoredBatch) -> Tensor:
    """[B, T, V]"""
    bare = bare_model(model)
    cast_experts(bare)
    with each_prompt_once(bare, batch.first_alike):
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
    return logits


def _row_sums(values: Tensor, row_index: Tensor, num_rows: int) -> Tensor:
    """[N] -> [num_rows] float64"""
    return torch.zeros(num_rows, dtype=torch.float64, device=values.device).index_add(0, row_index, values.double())


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device

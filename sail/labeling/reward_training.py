"""The optimizer steps of a reward model."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.labeling.calibration import accuracy
from sail.labeling.reward_model import RewardModel
from sail.labeling.reward_pairs import RewardPair
from sail.policy.rows import split_by_tokens

_WARMUP_SHARE = 0.1
_FINAL_SHARE = 0.1  # of the peak learning rate (Ouyang et al. 2203.02155, appendix C)
_MAX_GRAD_NORM = 1.0


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), shape [B], nats (Bradley and Terry 1952; arXiv 2203.02155, eq. 1)."""
    return -F.logsigmoid(chosen - rejected)


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak at a step, counted from 0: linear warm-up over a tenth, then a cosine down to a tenth."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2


def train(
    reward_model: RewardModel,
    batches: Sequence[Sequence[RewardPair]],
    *,
    learning_rate: float,
    weight_decay: float,
    max_tokens: int,
) -> Iterator[dict[str, float]]:
    """One AdamW step per batch, in place; yields each step's metrics (names of sail.core.metrics)."""
    model = reward_model.model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, foreach=False
    )
    for step, batch in enumerate(batches):
        rate = learning_rate * learning_rate_share(step, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        margins = _accumulate(reward_model, batch, max_tokens)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield {
            "step": step + 1,
            "loss": float(-F.logsigmoid(margins).mean()),
            "grad_norm": float(norm),
            "learning_rate": rate,
            "rewards/margins": float(margins.mean()),
            "rewards/accuracies": accuracy(margins.tolist()),
        }
    model.eval()


def _accumulate(model: RewardModel, batch: Sequence[RewardPair], max_tokens: int) -> Tensor:
    """Gradients of the batch's mean loss, however it is cut into microbatches; returns the margins, [B] float64."""
    margins = torch.zeros(len(batch), dtype=torch.float64)
    for part in split_by_tokens([pair.width for pair in batch], max_tokens, members=2):
        chosen, rejected = _both(model, [batch[index] for index in part])
        (bradley_terry(chosen, rejected).sum() / len(batch)).backward()
        margins[part] = (chosen - rejected).detach().double().cpu()
    return margins


def held_out_margins(model: RewardModel, pairs: Sequence[RewardPair], max_tokens: int) -> list[float]:
    """r_chosen - r_rejected of each pair, in their order."""
    margins = torch.zeros(len(pairs), dtype=torch.float64)
    for part in split_by_tokens([pair.width for pair in pairs], max_tokens, members=2):
        with torch.no_grad():
            chosen, rejected = _both(model, [pairs[index] for index in part])
        margins[part] = (chosen - rejected).double().cpu()
    values: list[float] = margins.tolist()
    return values


def _both(model: RewardModel, pairs: Sequence[RewardPair]) -> tuple[Tensor, Tensor]:
    """One forward pass for both sides, so that they are padded alike."""
    rewards = model.rewards([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
    return rewards[: len(pairs)], rewards[len(pairs) :]

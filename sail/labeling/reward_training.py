"""The optimizer steps of a reward model."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sail.labeling.calibration import accuracy
from sail.labeling.reward_loss import PairLoss
from sail.labeling.reward_model import RewardModel
from sail.labeling.reward_pairs import RewardPair
from sail.policy.rows import split_by_tokens

_WARMUP_SHARE = 0.1
_FINAL_SHARE = 0.1  # of the peak learning rate (Ouyang et al. 2203.02155, appendix C)
_MAX_GRAD_NORM = 1.0


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
    loss: PairLoss,
    learning_rate: float,
    weight_decay: float,
    max_tokens: int,
) -> Iterator[dict[str, float]]:
    """One AdamW step per batch, in place, of the weights that want a gradient.

    Yields each step's metrics (names of sail.core.metrics).
    """
    model = reward_model.model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, foreach=False
    )
    for step, batch in enumerate(batches):
        rate = learning_rate * learning_rate_share(step, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        margins = _accumulate(reward_model, batch, loss, max_tokens)
        norm = torch.nn.utils.clip_grad_norm_(weights, _MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield {
            "step": step + 1,
            "loss": float(loss(margins, *_labels(batch, margins)).mean()),
            "grad_norm": float(norm),
            "learning_rate": rate,
            "rewards/margins": float(margins.mean()),
            **_accuracies(margins, batch),
        }
    model.eval()


def _accuracies(margins: Tensor, batch: Sequence[RewardPair]) -> dict[str, float]:
    """Nothing for a batch of ties."""
    share = accuracy(margins.tolist(), [pair.p for pair in batch])
    return {} if share is None else {"rewards/accuracies": share}


def _labels(pairs: Sequence[RewardPair], like: Tensor) -> tuple[Tensor, Tensor]:
    """p and m of the pairs, [B] each."""
    return like.new_tensor([pair.p for pair in pairs]), like.new_tensor([pair.margin for pair in pairs])


def _accumulate(model: RewardModel, batch: Sequence[RewardPair], loss: PairLoss, max_tokens: int) -> Tensor:
    """Gradients of the batch's mean loss, however it is cut into microbatches; returns the margins, [B] float64."""
    margins = torch.zeros(len(batch), dtype=torch.float64)
    for part in split_by_tokens([pair.width for pair in batch], max_tokens, members=2):
        pairs = [batch[index] for index in part]
        chosen, rejected = _both(model, pairs)
        margins_B = chosen - rejected
        (loss(margins_B, *_labels(pairs, margins_B)).sum() / len(batch)).backward()
        margins[part] = margins_B.detach().double().cpu()
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

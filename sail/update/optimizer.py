"""Optimizers and the learning-rate schedule, both functions of settings and step alone."""

import math

import torch

from sail.core.run_settings import UpdateSettings
from sail.update.eight_bit import EIGHT_BIT, eight_bit_optimizer
from sail.update.zero import AnyOptimizer


def make_optimizer(model: torch.nn.Module, settings: UpdateSettings) -> torch.optim.Optimizer:
    """The optimizer over trainable weights; decay spares biases and norms (one-dimensional weights)."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trainable if w.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in trainable if w.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    betas = (settings.adam_beta1, settings.adam_beta2)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon, fused=True)
    if settings.optimizer in EIGHT_BIT:
        return eight_bit_optimizer(settings.optimizer, groups, lr=rate, betas=betas, eps=settings.adam_epsilon)
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate)


def learning_rate(step: int, horizon: int, settings: UpdateSettings) -> float:
    """Linear warm-up over warmup_ratio * horizon steps, then the decay to 0 at the horizon (or none).

    step counts from 0; the first step already moves.
    """
    warmup = math.ceil(settings.warmup_ratio * horizon)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, horizon - warmup))
    if settings.lr_scheduler_type == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.lr_scheduler_type == "linear":
        return settings.learning_rate * (1 - progress)
    return settings.learning_rate


def set_learning_rate(optimizer: AnyOptimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate

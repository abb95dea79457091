"""AdamW with moments of 8 bits in blocks (Dettmers et al. 2110.02861), by bitsandbytes where it is installed."""

import importlib
from importlib.util import find_spec
from typing import Any

import torch

from sail.core.errors import UserError

EIGHT_BIT = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
_WHERE = "update.optimizer"


def check_optimizer(name: str) -> None:
    """UserError, before anything runs, where the optimizer cannot be had here."""
    if name in EIGHT_BIT and find_spec("bitsandbytes") is None:
        raise UserError(
            f"{name} needs bitsandbytes, which is not installed", where=_WHERE,
            cure="pip install bitsandbytes, or take adamw",
        )  # fmt: skip


def eight_bit_optimizer(name: str, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """The one of that name over the parameter groups."""
    check_optimizer(name)
    made: torch.optim.Optimizer = getattr(importlib.import_module("bitsandbytes.optim"), EIGHT_BIT[name])(
        groups, **options
    )
    return made

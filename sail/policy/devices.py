"""Where models run: the one place that names the device, and that gives its memory back."""

import torch
from accelerate.utils.memory import clear_device_cache

from sail.policy.memory import room_for_a_model


def compute_device() -> torch.device:
    """The GPU that CUDA_VISIBLE_DEVICES lists first, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def to_device(model: torch.nn.Module, dtype: torch.dtype | None = None) -> torch.device:
    """Move a model, in place, to where it runs; returns where that is. UserError where it does not fit."""
    device = compute_device()
    with room_for_a_model(device):
        torch.nn.Module.to(model, device, dtype)
    return device


def free_memory() -> None:
    """Hand memory that nothing uses back to the GPU: a vLLM server beside this process cannot have it otherwise."""
    clear_device_cache(garbage_collection=torch.cuda.is_available())

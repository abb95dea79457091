"""Out of memory: an allocation that fails is the user's to cure."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from sail.core.errors import UserError

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # CUDA, CPU, cuBLAS
_ROOM = (
    "Free some: what else runs there, a server of ours included (vllm.during_update: stop, a smaller "
    "gpu-memory-utilization in vllm.args); or take a smaller model, or for the update "
    "launch: {accelerate_config: fsdp2} on several GPUs; then run again: what is committed is kept"
)


@contextmanager
def enough_memory(where: str, device: torch.device, cure: str) -> Iterator[None]:
    """An allocation that fails within ends in a UserError; what else fails passes through."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not (isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)):
            raise
        raise UserError(f"out of memory on {device}", where=where, cure=cure) from error


def room_for_a_model(device: torch.device) -> AbstractContextManager[None]:
    """Around what reads a model, or moves it to its device."""
    return enough_memory("loading a model", device, _ROOM)

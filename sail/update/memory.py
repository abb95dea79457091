"""Out of memory in an update is the user's to cure: which settings take less, and what they are now."""

from collections.abc import Iterator
from contextlib import contextmanager

from sail.core.errors import UserError
from sail.core.run_settings import UpdateSettings
from sail.policy.devices import compute_device

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # CUDA, CPU, cuBLAS


@contextmanager
def naming_the_levers(settings: UpdateSettings) -> Iterator[None]:
    """An allocation that fails within ends in a UserError; what else fails passes through."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not (isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)):
            raise
        raise UserError(f"out of memory on {compute_device()}", where="update", cure=_cure(settings)) from error


def _cure(settings: UpdateSettings) -> str:
    levers = [f"Lower update.max_tokens_per_microbatch ({settings.max_tokens_per_microbatch:,} now)"]
    if not settings.gradient_checkpointing:
        levers.append("set update.gradient_checkpointing: true (false now)")
    if not settings.bf16:
        levers.append("set update.bf16: true (false now; another result)")
    if settings.optimizer == "adamw":
        levers.append("take update.optimizer: adamw_8bit (another result)")
    return f"{', or '.join(levers)}; then run again: it goes on from the last step checkpoint"

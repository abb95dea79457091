"""Out of memory in an update's steps: which settings take less, and what they are now."""

from contextlib import AbstractContextManager

from sail.core.run_settings import UpdateSettings
from sail.policy.devices import compute_device
from sail.policy.memory import enough_memory


def naming_the_levers(settings: UpdateSettings) -> AbstractContextManager[None]:
    """An allocation that fails within ends in a UserError; what else fails passes through."""
    return enough_memory("update", compute_device(), _cure(settings))


def _cure(settings: UpdateSettings) -> str:
    levers = [f"Lower update.max_tokens_per_microbatch ({settings.max_tokens_per_microbatch:,} now)"]
    if not settings.gradient_checkpointing:
        levers.append("set update.gradient_checkpointing: true (false now)")
    if not settings.bf16:
        levers.append("set update.bf16: true (false now; another result)")
    if settings.optimizer == "adamw":
        levers.append("take update.optimizer: adamw_8bit (another result)")
    return f"{', or '.join(levers)}; then run again: it goes on from the last step checkpoint"

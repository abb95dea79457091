"""What a server is asked to sample from, and what it holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail.serving.model_files import Layout, check_adapter, tensor_layout

Score = Callable[[Sequence[int], Sequence[int]], Sequence[float]]  # (prompt ids, response ids) -> log-probs, nats


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A whole model, or a LoRA adapter on one.

    version names the policy, model_version the whole model below an adapter; without one they are equal. score is
    the trainer's: log-probs of the policy, adapter included; load puts the whole model on this process's GPU.
    """

    model_dir: Path
    model_version: str
    version: str
    eos_ids: frozenset[int]
    score: Score
    adapter_dir: Path | None = None
    load: Callable[[], Any] | None = None

    def check_files(self) -> Layout:
        """The layout of the whole model; ModelDirError where a file is missing, broken or cut short."""
        if self.adapter_dir is not None:
            check_adapter(self.adapter_dir)
        return tensor_layout(self.model_dir)


@dataclass
class Held:
    """What a running server has in memory."""

    layout: Layout | None  # tensors it was started on; None: not ours, unknown
    model_version: str | None  # the whole model; None: unknown, or a reload failed
    takes_adapters: bool
    transfer: str | None = None  # how it takes weights from another process's GPU memory

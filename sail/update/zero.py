"""DeepSpeed ZeRO: its engine, driven by hand, behind the few calls that an update makes of an optimizer.

accelerate's own wrapper steps in the backward pass, so accelerate starts the processes and never hears of DeepSpeed
(`take_over`). The engine runs unmanaged: every backward pass accumulates, and its step reduces what is left, clips and
moves, or leaves everything alone where the gradient is not finite. It averages over the processes: losses are scaled by
their number (sail/update/distributed.py). Whole tensors are read and set under torch's names, so that a checkpoint
serves any layout and any number of processes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sail.core.errors import UserError

_USED, _STAGE, _WHERE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "launch.accelerate_config"
_UNREAD = {
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
}
_INSTALL = "pip install 'sail-align[deepspeed]', or take fsdp2, which shards the same tensors"
_BUCKET = 50_000_000  # elements that are reduced or gathered at once: 200 MB, where DeepSpeed would take 2 GB


def take_over() -> None:
    """Before accelerate looks at its environment: the processes are plain ones, and the engine is ours."""
    if os.environ.get(_USED, "").lower() == "true":
        os.environ[_USED] = "false"
        os.environ.setdefault(_STAGE, "2")  # accelerate's default


def zero_stage() -> int:
    """1: optimizer state is sharded; 2: gradients too; 3: weights too; 0: no ZeRO. As `accelerate launch` said."""
    return int(os.environ.get(_STAGE, "0"))


def check_installed() -> None:
    if find_spec("deepspeed") is None:
        raise UserError("deepspeed is not installed", where=_WHERE, cure=_INSTALL)


def check_asked() -> None:
    """Refuse what accelerate's config may ask of DeepSpeed and nobody here reads."""
    for name, variable in _UNREAD.items():
        if os.environ.get(variable, "none").lower() != "none":
            raise UserError(f"{name} is not read here, only zero_stage is", where=_WHERE, cure="Leave it out")
    if os.environ.get(_STAGE, "1") not in ("1", "2", "3"):
        raise UserError(f"ZeRO has stages 1 to 3, not {zero_stage()}", where=_WHERE, cure="Take zero2 or zero3")


class ZeroOptimizer:
    """The engine's optimizer; its groups are those of the weights, not of the flat parts that the engine moves."""

    def __init__(self, engine: Any, groups: list[dict[str, Any]]) -> None:
        self.engine, self.param_groups = engine, groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The engine does it at the end of its step."""

    def clip_and_step(self) -> float:
        """The norm of the gradient before clipping; inf where it is not finite, and then nothing has moved."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.param_groups[0]["lr"]  # one schedule for all
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else float("inf")

    def step(self) -> None:
        """Done by clip_and_step."""

    def whole_state(self, *, keep: bool) -> dict[str, Any]:
        """What torch's optimizer over whole weights gives as its state_dict, on the CPU; all processes take part."""
        from deepspeed.utils import safe_get_full_optimizer_state

        slots: dict[str, Any] = self._inner.state.get(self._parts()[0], {})
        self._link()
        state: dict[int, dict[str, Any]] = {}
        for index, weight in enumerate(self._weights() if slots else ()):
            values = {
                name: safe_get_full_optimizer_state(weight, name) if _is_sharded(value) else value
                for name, value in slots.items()
            }
            if keep:
                state[index] = {name: _copied(value, "cpu") for name, value in values.items()}
        return {"state": state, "param_groups": self._numbered_groups()}

    def load_whole_state(self, saved: Mapping[str, Any]) -> None:
        """The way back; and the engine takes over the weights, which come before their optimizer."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self.engine.optimizer.refresh_fp32_params()
        state = saved["state"]
        if not state:
            return
        fused = any(group.get("fused") for group in self.param_groups)  # its count of steps lies beside the weights
        for part in self._parts():
            self._inner.state[part] = {
                name: torch.zeros_like(part) if _is_sharded(value) else _copied(value, part.device if fused else "cpu")
                for name, value in state[0].items()
            }
        self._link()
        for index, weight in enumerate(self._weights()):
            for name, value in state[index].items():
                if _is_sharded(value):
                    safe_set_full_optimizer_state(weight, value.to(weight.device), name)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """torch's optimizer, over flat parts."""
        inner: torch.optim.Optimizer = self.engine.optimizer.optimizer
        return inner

    def _parts(self) -> list[Tensor]:
        """The flat parts that are this process's to move."""
        name = "fp32_partitioned_groups_flat" if zero_stage() == 3 else "single_partition_of_fp32_groups"
        parts: list[Tensor] = getattr(self.engine.optimizer, name)
        return parts

    def _link(self) -> None:
        """Stages 1 and 2 link weights to their state once, after the first group's step: the others have none then."""
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state as link

        if zero_stage() < 3 and self._inner.state:
            for weights, part in zip(self.engine.optimizer.bit16_groups, self._parts(), strict=True):
                link(weights, part, self._inner.state)

    def _weights(self) -> list[torch.nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def _numbered_groups(self) -> list[dict[str, Any]]:
        numbers = iter(range(len(self._weights())))
        return [{**group, "params": [next(numbers) for _ in group["params"]]} for group in self.param_groups]


AnyOptimizer: TypeAlias = torch.optim.Optimizer | ZeroOptimizer


def zero_engine(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, *, bf16: bool
) -> tuple[Any, ZeroOptimizer]:
    """DeepSpeed's engine over the model, in the process group that is there. max_grad_norm 0: no clipping."""
    import deepspeed

    if not hasattr(deepspeed.DeepSpeedEngine, "managed_gradient_accumulation"):
        raise UserError(f"deepspeed {deepspeed.__version__} steps by its own count", where=_WHERE, cure=_INSTALL)
    if not type(optimizer).__module__.startswith("torch."):
        problem = f"ZeRO takes torch's optimizers apart, and {type(optimizer).__name__} is none"
        raise UserError(problem, where="update.optimizer", cure="Take adamw, or ddp")
    if not torch.cuda.is_available():  # gloo serves; else every first start compiles an op for shared memory
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = [dict(group) for group in optimizer.param_groups]
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=_config(max_grad_norm, bf16))
    return engine, ZeroOptimizer(engine, groups)


def _config(max_grad_norm: float, bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # counts samples in DeepSpeed's own log, no more
        "managed_gradient_accumulation": False,  # the step is where we say
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,  # its name for torch's AdamW
        "zero_optimization": {
            "stage": zero_stage(), "overlap_comm": False, "reduce_bucket_size": _BUCKET,
            "allgather_bucket_size": _BUCKET, "stage3_param_persistence_threshold": 0,
        },
        # torch's autocast as elsewhere; no modules: what is summed stays fp32
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }  # fmt: skip


def is_zero3_weight(weight: Tensor) -> bool:
    """It has its values only while they are gathered."""
    return hasattr(weight, "ds_id")


@contextmanager
def whole_weight(weight: Tensor, *, modified: bool = False) -> Iterator[None]:
    """Within the block a weight of ZeRO 3 is whole; modified: by all, the first one's counts. All take part."""
    if not is_zero3_weight(weight):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight], modifier_rank=0 if modified else None):
        yield


def _is_sharded(value: Any) -> bool:
    """Moments are, a count of steps is not."""
    return torch.is_tensor(value) and value.ndim > 0


def _copied(value: Any, device: torch.device | str) -> Any:
    return value.detach().to(device, copy=True) if torch.is_tensor(value) else value

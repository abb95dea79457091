"""One update in several processes: who computes what, and how their parts become the step of one process.

Every process knows the whole global batch and takes its share of the rows. Row weights are those of the global batch,
so gradients are summed over the processes, never averaged. How the weights lie is accelerate's affair (its config file
is in the environment), or under ZeRO DeepSpeed's (zero.py); two cases are told apart here:

    whole copies    every process has all weights; gradients are summed once a step, so processes may have more or
                    fewer microbatches than others
    sharded         FSDP2, ZeRO: processes meet in every forward or backward pass, so each must run equally many (one
                    with fewer repeats a row at weight zero), and the engine's mean of gradients is scaled to a sum
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, distributed
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from sail.core.errors import UserError
from sail.update.zero import (
    AnyOptimizer,
    check_asked,
    check_installed,
    is_zero3_weight,
    whole_weight,
    zero_engine,
    zero_stage,
)

_T = TypeVar("_T")


class Share(NamedTuple):
    """A microbatch of this process."""

    indices: list[int]  # into the rows of the global batch
    gradient_scale: float  # 0: repeated rows, which keep the processes in step and count nowhere


def refuse_unsupported(kind: str, fsdp: Mapping[str, Any], trained: Iterable[str]) -> None:
    """Refuse what does not work, with the reason. kind: accelerate's distributed_type; fsdp: its fsdp_config."""
    where, beside = "launch.accelerate_config", sorted(set(trained) - {"policy"})
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP", "DEEPSPEED"):
        raise UserError(f"{kind} is not built", where=where, cure="Use ddp, or fsdp2, which shards the same tensors")
    if kind == "DEEPSPEED":
        check_installed()
    if kind == "FSDP":
        _refuse_fsdp(fsdp, where)
    if kind in ("FSDP", "DEEPSPEED") and beside:
        raise UserError(
            f"{kind} shards one network, and this method trains a {beside[0]} network beside the policy",
            where=where, cure="Use ddp",
        )  # fmt: skip


def _refuse_fsdp(fsdp: Mapping[str, Any], where: str) -> None:
    if int(fsdp.get("fsdp_version", 1)) != 2:
        raise UserError("FSDP 1 flattens weights, step checkpoints need them by name", where=where, cure="Use fsdp2")
    if _says_yes(fsdp.get("fsdp_activation_checkpointing")):
        raise UserError(
            "fsdp_activation_checkpointing gives weights other names than checkpoints have", where=where,
            cure="Leave it out and set update.gradient_checkpointing: true",
        )  # fmt: skip
    if _says_yes(fsdp.get("fsdp_offload_params")):
        raise UserError(
            "fsdp_offload_params keeps weights off the device that the update computes on", where=where,
            cure="Leave it out; update.max_tokens_per_microbatch and update.gradient_checkpointing take less memory",
        )  # fmt: skip


def _says_yes(value: Any) -> bool:
    """A config says true, or quotes it."""
    return str(value).lower() == "true"


def refuse_this(accelerator: Accelerator, trained: Iterable[str]) -> None:
    """The same, of the processes that were started; a command of the user's own has no config that could be read."""
    check_asked()
    if on_zero(accelerator):
        refuse_unsupported("DEEPSPEED", {}, trained)
        return
    fsdp = _asked_of_fsdp(accelerator.state.fsdp_plugin) if sharded(accelerator) else {}
    refuse_unsupported(accelerator.distributed_type.value, fsdp, trained)


def _asked_of_fsdp(plugin: FullyShardedDataParallelPlugin) -> dict[str, Any]:
    """The plugin as the section of a config that makes it."""
    return {
        "fsdp_version": plugin.fsdp_version,
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
    }


def make_accelerator(bf16: bool) -> Accelerator:
    """accelerate, as its config file in the environment says."""
    AcceleratorState._reset_state()  # one process trains many rounds, and phases may differ in precision
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    accelerator.gradient_accumulation_steps = 1  # the environment's would divide every loss; the rows' weights do that
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:  # it drops FSDP on CPU without a word
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    leave_precision_to_autocast(accelerator)
    return accelerator


def leave_precision_to_autocast(accelerator: Accelerator) -> None:
    """Under bf16 accelerate tells FSDP2 to gather weights, sum gradients and hand on outputs in bfloat16 (on a GPU).

    Without a policy autocast casts, as in one process and as measured on CPU, and sums are float32.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.mixed_precision_policy = None


def on_zero(accelerator: Accelerator) -> bool:
    """One process alone has nothing to share."""
    return zero_stage() > 0 and accelerator.num_processes > 1


def sharded(accelerator: Accelerator) -> bool:
    """Told by the plugin: distributed_type of accelerate's state does not survive the preparation of an optimizer."""
    return on_zero(accelerator) or getattr(accelerator.state, "fsdp_plugin", None) is not None


def prepared(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float = 0.0
) -> tuple[torch.nn.Module, AnyOptimizer]:
    """On the device, sharded where the config says so; whole copies go without DDP, whose sum comes too early.

    max_grad_norm: for ZeRO, whose engine clips.
    """
    if on_zero(accelerator):
        return zero_engine(model, optimizer, max_grad_norm, bf16=accelerator.mixed_precision == "bf16")
    if sharded(accelerator) or accelerator.num_processes == 1:
        return accelerator.prepare(model, optimizer)  # type: ignore[no-any-return]
    return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)


@contextmanager
def without_autocast(model: torch.nn.Module) -> Iterator[None]:
    """Under bf16 accelerate wraps `forward`, wherever it is called from; a sampler asks for the weights as they are."""
    wrapped: Any = model.__dict__.get("forward")
    original: Any = model.__dict__.get("_original_forward")
    if original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped


def dealt(accelerator: Accelerator, widths: Sequence[int], cut: Callable[[list[int]], list[list[int]]]) -> list[Share]:
    """The microbatches of this process: rows dealt out in turn, the widest first, then cut.

    cut(rows) gives microbatches as positions in the rows it is given. Everybody computes everybody's, so nothing is
    communicated.
    """
    order = sorted(range(len(widths)), key=lambda index: (-widths[index], index))
    hands = [sorted(order[rank :: accelerator.num_processes]) for rank in range(accelerator.num_processes)]
    cuts = [cut(hand) if hand else [] for hand in hands]
    hand, mine = hands[accelerator.process_index], cuts[accelerator.process_index]
    scale = float(accelerator.num_processes) if sharded(accelerator) else 1.0
    shares = [Share([hand[position] for position in part], scale) for part in mine]
    missing = max(map(len, cuts)) - len(shares) if sharded(accelerator) else 0
    return shares + [Share(order[-1:], 0.0)] * missing


def sum_gradients(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """The gradient of the global batch in every process; FSDP2 and ZeRO sum their own."""
    if accelerator.num_processes == 1 or sharded(accelerator):
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    reached = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
    for weight, somewhere in zip(weights, summed(accelerator, reached).tolist(), strict=True):
        if not somewhere:
            continue  # without a gradient the optimizer leaves it alone, momentum and decay included
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        distributed.all_reduce(weight.grad)


def summed(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Elementwise over the processes."""
    if accelerator.num_processes == 1:
        return values
    total = values.to(accelerator.device)
    distributed.all_reduce(total)
    return total.to(values.device)


def gathered(accelerator: Accelerator, part: _T) -> list[_T]:
    """What each process has, in their order."""
    if accelerator.num_processes == 1:
        return [part]
    parts: list[Any] = [None] * accelerator.num_processes
    distributed.all_gather_object(parts, part)
    return parts


# ---- tensors that are sharded, and the whole ones on disk ------------------------------------------------------------


def whole(value: Tensor, *, keep: bool = True) -> Tensor:
    """The full tensor on the CPU. All processes take part; one that does not write need not keep it."""
    with whole_weight(value):
        full = value.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor()
        return full.cpu().contiguous() if keep else full.new_empty(0)


def laid_like(weight: Tensor, value: Tensor) -> Tensor:
    """A full tensor as `weight` lies over the processes; what has another shape (a step count) stays as it is."""
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    mesh, local = weight.device_mesh, value.to(weight.device)
    return distribute_tensor(local, mesh, weight.placements, src_data_rank=None)  # all have read it: nothing is sent


def whole_state(model: torch.nn.Module, *, keep: bool = True) -> dict[str, Tensor] | None:
    """What save_pretrained is to write in place of the model's own tensors; None where those are whole.

    Of a model with an adapter what is trained: its base stays where it came from.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    if not any(isinstance(weight, DTensor) or is_zero3_weight(weight) for weight in weights.values()):
        return None
    written = [weight for weight in model.parameters() if weight.requires_grad or not hasattr(model, "peft_config")]
    full = {id(weight): whole(weight, keep=keep) for weight in written}  # tied weights stay one tensor
    others = {name: value for name, value in model.state_dict().items() if name not in weights}
    return {name: full[id(weight)] for name, weight in weights.items() if id(weight) in full} | others

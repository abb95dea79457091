"""What accelerate's environment may say of an update, and what it may not."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.fsdp import fully_shard

from sail.core.errors import UserError
from sail.update.distributed import leave_precision_to_autocast, make_accelerator, refuse_this, whole_state
from tests.policy.oracle import tiny_model


def test_gradients_are_not_divided_by_the_accumulation_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate launch exports it from deepspeed_config.gradient_accumulation_steps."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones(2, requires_grad=True)
    make_accelerator(bf16=False).backward(3 * weight.sum())
    assert weight.grad is not None and weight.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("setting", ["ACTIVATION_CHECKPOINTING", "OFFLOAD_PARAMS"])
def test_what_fsdp2_cannot_do_here_is_refused_of_processes_that_were_started(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of the user's own shows in the environment alone."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    accelerator = make_accelerator(bf16=False)
    monkeypatch.setitem(accelerator.state._shared_state, "fsdp_plugin", FullyShardedDataParallelPlugin())
    monkeypatch.setitem(accelerator.state._shared_state, "distributed_type", DistributedType.FSDP)
    refuse_this(accelerator, ["policy"])
    monkeypatch.setenv(f"FSDP_{setting}", "true")
    monkeypatch.setitem(accelerator.state._shared_state, "fsdp_plugin", FullyShardedDataParallelPlugin())
    with pytest.raises(UserError, match=f"fsdp_{setting.lower()}"):
        refuse_this(accelerator, ["policy"])


def test_fsdp2_leaves_bfloat16_to_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plugin as accelerate leaves it on a GPU."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    accelerator, plugin = make_accelerator(bf16=True), FullyShardedDataParallelPlugin()
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.reduce_dtype == torch.bfloat16
    monkeypatch.setitem(accelerator.state._shared_state, "fsdp_plugin", plugin)
    leave_precision_to_autocast(accelerator)
    assert plugin.mixed_precision_policy is None


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_of_a_sharded_model_with_an_adapter_the_adapter_alone_is_gathered(one_process: None) -> None:
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = {name: weight.detach().clone() for name, weight in adapted.named_parameters() if weight.requires_grad}
    state = whole_state(fully_shard(adapted))
    assert state is not None and len(before) == 4
    torch.testing.assert_close({name: value for name, value in state.items() if name in before}, before)
    assert not set(state) & {name for name, weight in adapted.named_parameters() if not weight.requires_grad}

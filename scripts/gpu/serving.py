"""vLLM on this device, where it is installed: start, new weights, sleep, log-probs beside the trainer's each time; also
with weights handed over by IPC, and colocated."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from sail.core.artifacts import leaf
from sail.core.run_settings import VllmSettings
from sail.policy.devices import to_device
from sail.policy.loading import load_policy, load_tokenizer
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from sail.serving.model_files import eos_token_ids
from sail.serving.policy_server import PolicyServer
from sail.serving.replica import SYNC_LOG
from sail.serving.served_policy import ServedPolicy
from sail.testbed.build import build_testbed
from sail.testbed.settings import MAX_POSITIONS, BuildSettings
from scripts.gpu.findings import Surroundings, at_most, figure, missing, surroundings

CHECKS = ("vLLM", "vLLM, ipc", "vLLM, colocate")  # each: start, new weights, sleep and wake, log-probs
ARGS = {"gpu-memory-utilization": 0.3, "enforce-eager": True}
START_S = 40.0


def main(here: Surroundings, folder: Path) -> None:
    if find_spec("vllm") is None or not here.on_gpu:
        why = "vllm is not installed" if find_spec("vllm") is None else "no CUDA device"
        for name in CHECKS:
            missing(name, why)
        return
    build_testbed(folder / "testbed", BuildSettings(), say=lambda text: print(text, file=sys.stderr))
    policies = [policy(folder / "testbed/sft", "start"), policy(moved(folder), "moved")]
    settings = VllmSettings(args=ARGS)
    for name, changed in {
        "vLLM": settings,
        "vLLM, ipc": settings.replace(weight_transfer="ipc"),
        "vLLM, colocate": settings.replace(mode="colocate"),
    }.items():
        if here.time_left() > START_S:
            check(name, changed, folder / name, policies)
        else:
            missing(name, "no time left")


def check(name: str, settings: VllmSettings, logs: Path, policies: Sequence[ServedPolicy]) -> None:
    """Start on the first, take the second, sleep, wake: verified each time, by the way that was meant."""
    with PolicyServer(settings, logs, max_model_len=MAX_POSITIONS) as server:
        for one in policies:
            took(f"{name}, {one.version}", server, one)
        server.rest()
        took(f"{name}, sleep and wake", server, policies[-1])
        at_most(f"{name}, servers started", server.num_starts, 1)
    ways = [json.loads(line)["way"] for line in (logs / SYNC_LOG).read_text().splitlines()]
    meant = "reload from disk" if settings.weight_transfer is None else "hand over"
    at_most(f"{name}, ways of new weights other than {meant}", float(ways[1] != meant), 0)


def took(name: str, server: PolicyServer, one: ServedPolicy) -> None:
    began = time.perf_counter()
    server.serve(one)
    figure(name, time.perf_counter() - began, "s", "verified")
    report = server.replicas[0].report
    assert report is not None, "serve verifies"
    at_most(f"{name}, log-probs beside the trainer's", report.max_abs_nats, 0.5, "nats")


def policy(folder: Path, version: str) -> ServedPolicy:
    scored = partial(score, load_policy(leaf(folder)))
    return ServedPolicy(folder, version, version, eos_token_ids(folder), scored, load=lambda: on_gpu(folder))


def on_gpu(folder: Path) -> torch.nn.Module:
    model = load_policy(leaf(folder))
    to_device(model)
    return model


def score(model: torch.nn.Module, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
    """The trainer's log-probs, in float32 on the CPU."""
    with torch.no_grad():
        logps: list[float] = token_logps(model, [Row(prompt_ids, response_ids)]).logps.tolist()
    return logps


def moved(folder: Path) -> Path:
    """The testbed's policy with other weights."""
    original, copied = leaf(folder / "testbed/sft"), folder / "moved"
    shutil.copytree(original.path, copied)
    model = load_policy(original)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    model.save_pretrained(str(copied))
    load_tokenizer(original).save_pretrained(copied)
    return copied


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        main(surroundings(), Path(made_in))

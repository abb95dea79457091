"""vLLM on this device, where it is installed: start, log-probs beside the trainer's, new weights without a restart."""

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
from sail.policy.loading import load_policy, load_tokenizer
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from sail.serving.policy_server import PolicyServer
from sail.testbed.build import build_testbed
from sail.testbed.settings import MAX_POSITIONS, BuildSettings
from scripts.gpu.findings import Surroundings, at_most, figure, missing, surroundings

CHECKS = ("vLLM starts", "vLLM, log-probs", "vLLM, reload", "vLLM, sleep and wake")


def main(here: Surroundings, folder: Path) -> None:
    if find_spec("vllm") is None or not here.on_gpu:
        why = "vllm is not installed" if find_spec("vllm") is None else "no CUDA device"
        for name in CHECKS:
            missing(name, why)
        return
    build_testbed(folder / "testbed", BuildSettings(), say=lambda text: print(text, file=sys.stderr))
    settings = VllmSettings(args={"gpu-memory-utilization": 0.3})
    with PolicyServer(settings, folder / "logs", max_model_len=MAX_POSITIONS) as server:
        for name, model in (("start", folder / "testbed/sft"), ("reload", moved(folder))):
            began = time.perf_counter()
            server.serve(model, name, partial(score, load_policy(leaf(model))))
            figure(f"vLLM, {name}", time.perf_counter() - began, "s", "verified")
            assert server.last_report is not None
            at_most(f"vLLM, {name}, log-probs beside the trainer's", server.last_report.max_abs_nats, 0.5, "nats")
        at_most("vLLM, servers started for two policies", server.num_starts, 1)
    missing("vLLM, sleep and wake", "the server is not put to sleep yet")


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

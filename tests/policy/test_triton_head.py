"""The Triton tiles of the head without a GPU: right in Triton's interpreter, and compiled for GPUs.

The interpreter multiplies no bfloat16 (it keeps it as integers), so half precision is float16 there; the kernels are
compiled in bfloat16, and scripts/gpu_check runs them.
"""

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def _told_by(module: str, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_interpreted_kernels_equal_the_float64_head_and_lose_no_more_than_torch() -> None:
    """Trained and frozen head, with and without bias, soft cap and scale: log-probs and every gradient."""
    cases = json.loads(_told_by("tests.policy.interpreted_head", TRITON_INTERPRET="1"))
    assert len(cases) == 18
    for name, errors in cases.items():
        for triton, torch in zip(errors["triton"], errors["torch"], strict=True):
            assert triton < 1.5 * torch, name
            assert triton < (1e-6 if name.startswith("float32") else 1e-3), name


def test_the_kernels_compile_for_ampere_and_hopper_and_stay_in_registers() -> None:
    lines = _told_by("tests.policy.compile_kernels").splitlines()
    assert [line.split()[0] for line in lines] == ["sm_80"] * 3 + ["sm_90"] * 3
    for line in lines:
        (stack,) = re.findall(r"stack bytes: (\d+)", line)
        assert int(stack) < 512, line

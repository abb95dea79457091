"""An update that runs out of memory says which settings take less, and goes on with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.core.run_settings import UpdateSettings
from sail.update.memory import naming_the_levers


def test_an_update_or_a_model_out_of_memory_names_the_levers_and_a_smaller_budget_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.update.out_of_memory", str(tmp_path)]
    given_back = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}  # else what was freed leaves room
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | given_back).stdout
    assert "update: out of memory on cpu. Lower update.max_tokens_per_microbatch (1,000,000 now)" in told
    assert "or set update.gradient_checkpointing: true (false now)" in told
    assert "loading a model: out of memory on cpu. Free some: what else runs there" in told
    assert "resuming at step 1" in told
    assert "same checkpoint: True" in told


def test_levers_already_pulled_are_not_named_again() -> None:
    settings = UpdateSettings(gradient_checkpointing=True, bf16=True, optimizer="adamw_8bit")
    with pytest.raises(UserError) as raised, naming_the_levers(settings):
        raise MemoryError
    assert "max_tokens_per_microbatch (16,384 now); then run again" in str(raised.value)
    assert "gradient_checkpointing" not in str(raised.value)


def test_another_failure_passes_through() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), naming_the_levers(UpdateSettings()):
        raise RuntimeError("shapes differ")

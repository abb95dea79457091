"""A policy that trains, as a checkpoint: the weights of this moment, for this process and for others, and no file."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from sail.core.atomic import tree_files
from sail.policy.live import LivePolicy
from sail.policy.loading import load_policy
from tests.serving_fixtures import make_tiny_policy

_READ = "import sys, safetensors.numpy as s; print(s.load_file(sys.argv[1])['model.norm.weight'].sum())"


def read_elsewhere(folder: Path) -> float:
    """The sum of the final norm's weight, as another process reads it."""
    command = [sys.executable, "-c", _READ, str(folder / "model.safetensors")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_another_process_reads_whole_weights_that_are_in_no_folder(tmp_path: Path) -> None:
    tiny = make_tiny_policy(tmp_path / "tiny", seed=0, tied=True)
    norm, tokenizer = tiny.model.model.norm.weight, AutoTokenizer.from_pretrained(tiny.path)
    with LivePolicy(tiny.model, tokenizer, tmp_path / "live", served=True) as live:
        for version, value in (("v1", 1.0), ("v2", 2.0)):
            with torch.no_grad():
                norm.fill_(value)
            policy = live.at(version)
            assert load_policy(policy) is tiny.model and policy.key == version
            assert read_elsewhere(policy.path) == value * norm.numel()
        kept = [file for file in tree_files(tmp_path / "live") if not file.is_symlink()]
        assert sum(file.stat().st_size for file in kept) < 100_000, "configuration and tokenizer"
        assert {file.parent.parent.name for file in kept} == {"v2"}
        weights = policy.path / "model.safetensors"
        assert weights.stat().st_size > 400_000
    assert not weights.exists()


_KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from sail.policy.live import LivePolicy

tiny, folder = sys.argv[1], Path(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
live = LivePolicy(model, tokenizer, folder, served=True)
sys.addaudithook(lambda event, args: str(args[0]).startswith("/dev/shm/sail-") and str(args[0]).endswith(
    "tokenizer.json") and os.kill(os.getpid(), signal.SIGKILL) if event == "open" else None)
live.at("v1")
"""


def test_what_a_kill_leaves_in_shared_memory_goes_with_the_next_version(tmp_path: Path) -> None:
    tiny = make_tiny_policy(tmp_path / "tiny", seed=0, tied=True)
    before = set(Path("/dev/shm").glob("sail-*"))
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tiny.path), str(tmp_path / "live")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = set(Path("/dev/shm").glob("sail-*")) - before
    assert sum(file.stat().st_size for file in tree_files(left)) > 400_000
    with LivePolicy(tiny.model, AutoTokenizer.from_pretrained(tiny.path), tmp_path / "live", served=True) as live:
        live.at("v1")
    assert not left.exists()


def test_an_engine_that_keeps_a_version_keeps_no_weights(tmp_path: Path) -> None:
    tiny = make_tiny_policy(tmp_path / "tiny", seed=0, tied=False)
    with LivePolicy(tiny.model, AutoTokenizer.from_pretrained(tiny.path), tmp_path / "live", served=False) as live:
        policy = live.at("v1")
    with pytest.raises(AssertionError, match="stopped training"):
        load_policy(policy)

"""Bytes that scoring and an update add to a process at their peak, printed as JSON. Run by its test, with a folder."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sail.core.artifacts import leaf
from sail.core.route_settings import LossSettings
from sail.core.store import Workspace
from sail.policy.scoring import ScoringInputs, score_here
from sail.update.stage import train
from tests.update.out_of_memory import long_groups
from tests.update.stored import World, stored_groups

BUDGET, PAIRS = 2100, 2
CONFIG = Qwen2Config(
    vocab_size=6000, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=1100, tie_word_embeddings=False, eos_token_id=2, pad_token_id=0,
    bos_token_id=None, dtype=torch.float32,
)  # fmt: skip


def added(run: Callable[[], object]) -> int:
    """Peak of the resident memory above what was resident before, bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main(root: Path) -> None:
    world = World(root)  # its scoring has loaded what a first forward pass loads
    Qwen2ForCausalLM(CONFIG).save_pretrained(world.policy.path)
    world.policy = leaf(world.policy.path)
    world.data = stored_groups(world.store, long_groups(4, 500), "data")
    scoring = Workspace(root / "scoring", lambda text: None)
    scoring.path.mkdir()
    peaks = {"scoring": added(lambda: score_here(scoring, ScoringInputs(world.data, world.policy, max_tokens=BUDGET)))}
    route = world.offline(LossSettings(type="dpo", params={"beta": 0.1}))
    for name, checkpointing in (("checkpointed", True), ("update", False)):
        inputs = world.inputs(
            route, steps=2, train_batch_size=PAIRS, max_tokens_per_microbatch=BUDGET,
            gradient_checkpointing=checkpointing, save_steps=10,
        )  # fmt: skip
        workspace = Workspace(root / name, lambda text: None)
        workspace.path.mkdir()
        peaks[name] = added(lambda workspace=workspace, inputs=inputs: train(workspace, inputs))
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What a plan says of memory: beside the measured peak, and what the settings do to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loops.config import load_config
from loops.memory_plan import Shape, StageMemory, shape_of, stages
from tests.loops.peak_memory import BUDGET, CONFIG, PAIRS

_RUN = "{preset: sail-dp, model_name_or_path: m, data: {prefs: {path: p.jsonl}}}"
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}  # gives back


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(CONFIG)


def planned(folder: Path, shape: Shape, *overrides: str) -> dict[str, StageMemory]:
    (folder / "c.yaml").write_text(_RUN)
    sizes = (f"update.max_tokens_per_microbatch={BUDGET}", f"update.train_batch_size={PAIRS}")
    settings = load_config(str(folder / "c.yaml"), [*sizes, *overrides]).settings
    return {stage.stage: stage for stage in stages(settings, shape)}


def test_the_peak_is_what_was_planned_or_at_most_two_fifths_less(shape: Shape, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.loops.peak_memory", str(tmp_path / "measured")]
    told = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True).stdout
    measured: dict[str, int] = json.loads(told.splitlines()[-1])
    plan, checkpointed = planned(tmp_path, shape), planned(tmp_path, shape, "update.gradient_checkpointing=true")
    wanted = {
        "scoring": plan["scoring"].total, "update": plan["update"].total, "checkpointed": checkpointed["update"].total,
    }  # fmt: skip
    shares = {name: measured[name] / wanted[name] for name in wanted}
    assert all(0.6 < share < 1.05 for share in shares.values()), shares


def test_fewer_numbers_are_kept_where_fewer_are_trained(shape: Shape, tmp_path: Path) -> None:
    full, lora = (planned(tmp_path, shape, *change)["update"] for change in ([], ["lora.r=4"]))
    assert full.weights == full.gradients == full.optimizer / 2 == 4 * shape.weights
    assert lora.gradients == lora.optimizer / 2 == 4 * 4 * shape.adapter < full.gradients / 10
    sharded = ["launch.accelerate_config=fsdp2", "launch.num_processes=2"]
    assert planned(tmp_path, shape, *sharded)["update"].optimizer == full.optimizer / 2


def test_a_server_takes_its_cache_and_a_fitted_reward_model_an_optimizer(shape: Shape, tmp_path: Path) -> None:
    plan = planned(
        tmp_path, shape, "vllm.kv_cache_gib=2", "vllm.dtype=float32", "prompts.source=prefs",
        "labelers.rm={kind: reward_model, fit: {data: prefs}}", "routes.online.labels.by=rm",
    )  # fmt: skip
    assert plan["sampling"].cache in (2 * 2**30, 0)  # 0: a GPU's share is the server's
    assert plan["sampling"].weights == 4 * shape.weights
    assert plan["reward fit"].optimizer == 8 * shape.weights

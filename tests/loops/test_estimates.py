"""The figures of `sail plan`: what is drawn and what is written, at most."""

from pathlib import Path
from typing import Any

import pytest

from loops.config import resolve
from loops.documents import merge
from loops.estimates import checkpoint_bytes, sampled_tokens, scratch_bytes
from loops.memory_plan import shape_of
from tests.loops.peak_memory import CONFIG
from tests.loops.running import Zygote, small_config, write_config

MIX: dict[str, Any] = {
    "preset": "sail-mix", "model_name_or_path": "m",
    "data": {"prefs": {"path": "p.jsonl"}},
    "labelers": {"rm": {"kind": "callable", "path": "sail.testbed.gold:hump"}},
    "prompts": {"from": "prefs", "per_round": 100}, "num_rounds": 2,
    "generation": {"max_completion_length": 10}, "evaluation": {"num_prompts": 0}, "round": {"optimizer": "restart"},
}  # fmt: skip


def test_routes_that_share_their_samples_are_counted_once() -> None:
    assert sampled_tokens(resolve(MIX).phases[0]) == 2 * 100 * 2 * 10
    held_out = resolve(merge(MIX, {"evaluation": {"num_prompts": 7, "num_generations": 3}})).phases[0]
    assert sampled_tokens(held_out) == 2 * 100 * 2 * 10 + 3 * 7 * 3 * 10, "the start is evaluated too"


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        ({}, (4, 24)),
        ({"round": {"optimizer": "carry"}}, (12, 24)),
        ({"update": {"optimizer": "adamw_8bit"}}, (4, 12)),
        ({"update": {"optimizer": "sgd"}, "round": {"optimizer": "carry"}}, (4, 8)),
    ],
)
def test_disk_is_what_is_trained_and_its_optimizer_where_that_is_kept(
    change: dict[str, Any], numbers: tuple[int, int]
) -> None:
    """Bytes a trained weight: of a checkpoint, and of two step checkpoints, the old one beside the new."""
    shape = shape_of(CONFIG)
    for lora, trained in ((None, shape.weights), ({"r": 4}, 4 * shape.adapter)):
        settings = resolve(merge(MIX, change | ({} if lora is None else {"lora": lora})))
        found = checkpoint_bytes(settings, shape), scratch_bytes(settings, shape)
        assert found == tuple(number * trained for number in numbers)


def test_arms_that_only_evaluate_can_be_planned(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    base = small_config(testbed, preset="linear-alignment", num_rounds=0)
    base = {key: value for key, value in base.items() if key != "update"}
    arms = {f"rho-{rho}": {"generation.linear_alignment.rho": rho} for rho in (1, 3)}
    ablation = write_config(tmp_path / "a.yaml", {"base": base, "seeds": [1], "arms": arms})
    planned = sail.run("plan", ablation, cwd=tmp_path)
    assert planned.returncode == 0, planned.err
    assert "for 0 new checkpoints" in planned.out


def test_an_arm_that_refreshes_its_sampler_can_be_planned(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    base = small_config(testbed, num_rounds=1, evaluation={"num_prompts": 0})
    prompts, length = base["prompts"]["per_round"], base["generation"]["max_completion_length"]
    arms = {"once": {}, "refreshed": {"steps_per_generation": 1}}
    ablation = write_config(tmp_path / "a.yaml", {"base": base, "seeds": [1], "arms": arms})
    planned = sail.run("plan", ablation, cwd=tmp_path)
    assert planned.returncode == 0, planned.err
    assert f"{2 * prompts * 2 * length:,}" in planned.out, "two runs, two samples a prompt"

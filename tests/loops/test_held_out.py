"""What evaluates is not trained on, whichever way it would come in."""

from pathlib import Path

from loops.config import resolve
from loops.context import Context
from loops.iterate import run_phases
from sail.core.records import PreferencePair, Prompt, content_key
from sail.core.store import Store


def test_pairs_of_held_out_prompts_are_left_out_of_offline_routes(testbed: Path, tmp_path: Path) -> None:
    settings = resolve({
        "preset": "dpo",
        "model_name_or_path": str(testbed / "sft"),
        "data": {"prefs": {"path": str(testbed / "prefs.jsonl")}},
        "prompts": {"from": "prefs"},
        "generation": {"engine": "transformers", "max_completion_length": 12},
        "update": {"steps": 1, "train_batch_size": 4},
        "evaluation": {"num_prompts": 16, "num_generations": 1},
    })  # fmt: skip
    context = Context(settings, Store(tmp_path / "store"), tmp_path / "logs")
    records = list(run_phases(context))
    pairs = records[-1].artifacts["pairs/offline"]
    held_out = {content_key(prompt) for prompt in context.prompts(settings.phases[0]).read(Prompt, "held_out")}
    assert len(held_out) == 16
    trained = {content_key(Prompt("", pair.prompt, (0,))) for pair in pairs.read(PreferencePair, "pairs")}
    assert trained
    assert not trained & held_out
    assert pairs.result()["labels/dropped_held_out"] >= 16

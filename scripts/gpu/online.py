"""A whole online run on this device: the testbed, samples by the transformers engine, labels, updates, evaluation."""

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from loops.config import load_config, smoke_overrides
from loops.run import run
from loops.run_folder import RunFolder
from sail.results import load_run
from sail.testbed.build import build_testbed
from sail.testbed.settings import BuildSettings
from scripts.gpu.findings import Surroundings, at_most, figure, surroundings

REWARD = "eval/reward"


def main(here: Surroundings, folder: Path) -> None:
    start = time.perf_counter()
    build = BuildSettings(pretrain_steps=10, sft_steps=5, num_labels=40, num_heldout=20, num_demonstrations=40)
    build_testbed(folder / "testbed", build if here.dry else BuildSettings(), say=_say)
    figure("testbed built", time.perf_counter() - start, "s")
    config = load_config("configs/quickstart.yaml", overrides(here, folder / "testbed"))
    settings = smoke_overrides(config.settings) if here.dry else config.settings
    start = time.perf_counter()
    run(config, settings, RunFolder(folder / "run"), Console(file=sys.stderr, width=120))
    figure(
        "online run, transformers engine", time.perf_counter() - start, "s", f"{settings.phases[0].num_rounds} rounds"
    )
    made = load_run(folder / "run")
    before, after = made.start.metrics()[REWARD], made.round(-1).metrics()[REWARD]
    figure("gold reward before", before)
    figure("gold reward after", after)
    if not here.dry:
        at_most("gold reward lost in the run", before - after, 0.0, "the run must raise it")


def overrides(here: Surroundings, testbed: Path) -> list[str]:
    files = {"data.prefs.path": "prefs.jsonl", "data.prompts.path": "prompts.jsonl",
             "data.heldout.path": "prefs_heldout.jsonl", "model_name_or_path": "sft"}  # fmt: skip
    bf16 = str(here.on_gpu).lower()
    return [
        *(f"{key}={testbed / name}" for key, name in files.items()), "generation.engine=transformers", "num_rounds=1",
        "generation.batch_size=512", "prompts.per_round=256", "update.steps=40", f"update.bf16={bf16}",
    ]  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        main(surroundings(), Path(made_in))

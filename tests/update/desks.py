"""Updates that one process trains alone and several at a desk, and what makes them equal."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from sail.core.artifacts import Leaf, leaf
from sail.core.route_settings import ComponentSettings, LossSettings, RouteSettings, ValueSettings
from sail.core.run_settings import LoraSettings
from sail.core.store import Workspace
from sail.labeling.ratings import DatasetRatings, RatingOptions
from sail.labeling.rows import RowOptions, response_rows
from sail.policy.loading import add_adapter, load_policy, model_folder, model_folder_in, save_policy
from sail.policy.scoring import ScoringInputs, score_logps
from sail.update.inputs import UpdateInputs
from sail.update.items import RouteInput, RowSource
from sail.update.launch import Job, recipe_of, write_job
from sail.update.stage import train
from tests.update.stored import KEEP, World, tiny_leaf

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
DPO = LossSettings(type="dpo", params={"beta": 0.2})
# 4 rows and 3. Where a gradient is all rounding Adam takes its sign for a direction, unless it is small beside epsilon.
BATCH = {
    "steps": 20, "train_batch_size": 7, "max_tokens_per_microbatch": 40, "save_steps": 15, "learning_rate": 1e-4,
    "adam_epsilon": 1e-5,
}  # fmt: skip
SPREAD = 0.05  # a policy so smooth that the last bit of its weights moves no loss by 1e-6


def single_responses(world: World, loss: str) -> RouteInput:
    """Dataset responses with thumbs; for KTO with mismatched ones beside them."""
    options = RowOptions(rating=RatingOptions("thumbs"), mismatch=loss == "kto", hygiene=KEEP)
    rows = response_rows(world.store, world.data, DatasetRatings(world.data, "prefs"), options)
    strangers = score_logps(world.store, rows, world.policy, table="mismatched") if loss == "kto" else None
    source = RowSource(world.data, rows, score_logps(world.store, world.data, world.policy), mismatched_logps=strangers)
    route = RouteSettings.model_validate({"responses": "prefs", "labels": "prefs"})
    return RouteInput("single", route, LossSettings(type=loss), (source,))


def sail(world: World) -> UpdateInputs:
    """Two routes of uneven shares, a score term, a baseline, weights of stale samples."""
    offline, online = world.offline(DPO, share=0.7), world.self_labelled(DPO, share=0.3, sail_coef=0.5)
    inputs = world.inputs(offline, online, **BATCH)
    importance = inputs.importance.replace(mode="truncate")
    return replace(inputs, importance=importance, keep_optimizer=True)


def few_rows(world: World) -> UpdateInputs:
    """One row a step: a process without any."""
    return world.inputs(world.offline(DPO), **BATCH | {"train_batch_size": 1})


def kto(world: World) -> UpdateInputs:
    return world.inputs(single_responses(world, "kto"), **BATCH)


def lora(world: World) -> UpdateInputs:
    inputs = world.inputs(world.offline(DPO), **BATCH | {"learning_rate": 1e-3})
    return replace(inputs, lora=LoraSettings(r=4, alpha=8))


def tied(world: World) -> UpdateInputs:
    start = tiny_leaf(world.root / "tied", seed=2, tied=True, spread=SPREAD)
    return replace(world.inputs(world.offline(DPO), **BATCH), start=start)


def dro_v(world: World) -> UpdateInputs:
    value = ValueSettings(learning_rate=1e-4)
    return replace(world.inputs(single_responses(world, "dro_v"), **BATCH), components=ComponentSettings(value=value))


def scorings(world: World) -> dict[str, ScoringInputs]:
    """Ten microbatches and more, one for two processes, and an adapter's."""
    return {
        "many": ScoringInputs(world.data, world.policy, max_tokens=25),
        "one": ScoringInputs(world.samples, world.policy),
        "adapter": ScoringInputs(world.data, _adapter(world), max_tokens=25),
    }


def _adapter(world: World) -> Leaf:
    """On the policy, and no longer the identity."""
    folder = world.root / "adapter"
    if not folder.exists():
        model: Any = add_adapter(load_policy(world.policy), LoraSettings(r=4, alpha=8), seed=0)  # type: ignore[arg-type]
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        save_policy(model, AutoTokenizer.from_pretrained(model_folder(world.policy)), folder)
    return leaf(model_folder_in(folder))


CASES: dict[str, Callable[[World], UpdateInputs]] = {
    each.__name__: each for each in (sail, few_rows, kto, lora, tied, dro_v)
}


@dataclass(frozen=True)
class Trained:
    """What an update left in its workspace."""

    path: Path

    @cached_property
    def steps(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        files = sorted(self.path.glob("model/*.safetensors")) + sorted(self.path.glob("components/value/*.safetensors"))
        return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def trained_alone(world: World, names: Iterable[str]) -> dict[str, Trained]:
    """These cases in one process, this one."""
    trained = {}
    for name in names:
        workspace = world.root / "alone" / name
        workspace.mkdir(parents=True)
        train(Workspace(workspace, lambda text: None), CASES[name](world))
        trained[name] = Trained(workspace)
    return trained


class Desk:
    """Jobs of one layout, and what came of them."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.folder, self.layout = folder / layout, layout
        self.jobs: dict[str, Job] = {}
        self.arguments: list[str] = []  # of tests.update.processes
        self.log = ""

    def add(
        self, name: str, inputs: UpdateInputs | ScoringInputs, start: Path | None = None, processes: int = 2
    ) -> None:
        workspace = self.folder / name
        shutil.copytree(start, workspace) if start else workspace.mkdir(parents=True)
        answer = self.folder / f"{name}.answer.json"
        self.jobs[name] = Job(inputs, recipe_of(inputs).key, workspace, answer, processes)
        write_job(self.folder / f"{name}.json", self.jobs[name])
        self.arguments.append(str(self.folder / f"{name}.json"))

    def run(self) -> None:
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{self.layout}.yaml"),
            "--num_processes", "2", "-m", "tests.update.processes",
        ]  # fmt: skip
        done = subprocess.run(
            [*command, *self.arguments], env=os.environ | {"ACCELERATE_USE_CPU": "true"}, text=True, timeout=600,
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.log = done.stdout
        assert done.returncode == 0, self.log[-5000:]

    def answer(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.jobs[name].answer.read_text())
        return found

    def trained(self, name: str) -> Trained:
        assert "result" in self.answer(name), self.answer(name)
        return Trained(self.jobs[name].workspace)


# Where the policy still (almost) equals its reference, its margins are all rounding, and so is whom its label chooses.
SIGNS = ("rewards/accuracies", "logps/chosen", "logps/rejected")


def without_the_end(trained: Trained, to: Path) -> Path:
    """A workspace as a kill after step 15 leaves it."""
    shutil.copytree(trained.path / "scratch", to / "scratch")
    return to


def assert_equal(one: Trained, other: Trained) -> None:
    assert len(one.steps) == len(other.steps) == 20
    for mine, yours in zip(one.steps, other.steps, strict=True):
        assert mine.keys() == yours.keys()
        assert mine["loss"] == pytest.approx(yours["loss"], rel=1e-5, abs=1e-5)  # rounding: another budget moves it so
        both_sides = [step.get("logps/chosen", 0.0) + step.get("logps/rejected", 0.0) for step in (mine, yours)]
        assert both_sides[0] == pytest.approx(both_sides[1], rel=1e-4, abs=1e-4)
        mine, yours = ({name: value for name, value in step.items() if name not in SIGNS} for step in (mine, yours))
        assert mine == pytest.approx(yours, rel=1e-4, abs=1e-4)
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], rtol=0, atol=1e-5)

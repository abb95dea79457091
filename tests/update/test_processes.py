"""Two processes are one: equal losses and weights over 20 steps, whole copies or sharded, and across a resume."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sail.core.records import ResponseLogps
from sail.core.route_settings import ComponentSettings, LossSettings, RouteSettings, ValueSettings
from sail.core.run_settings import LoraSettings
from sail.core.store import Workspace
from sail.labeling.ratings import DatasetRatings, RatingOptions
from sail.labeling.rows import RowOptions, response_rows
from sail.policy.scoring import ScoringInputs, score_here, score_logps
from sail.update.inputs import UpdateInputs
from sail.update.items import RouteInput, RowSource
from sail.update.launch import Job, recipe_of, write_job
from sail.update.stage import train
from tests.update.stored import KEEP, World, tiny_leaf

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
DPO = LossSettings(type="dpo", params={"beta": 0.2})
LAYOUTS = ["ddp", "fsdp2"]
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
    """Ten microbatches and more, and one for two processes."""
    return {
        "many": ScoringInputs(world.data, world.policy, max_tokens=25),
        "one": ScoringInputs(world.samples, world.policy),
    }


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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), SPREAD)


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, Trained]:
    """Every case in one process."""
    trained = {}
    for name, inputs in CASES.items():
        workspace = world.root / "alone" / name
        workspace.mkdir(parents=True)
        train(Workspace(workspace, lambda text: None), inputs(world))
        trained[name] = Trained(workspace)
    return trained


@pytest.fixture(scope="module")
def desks(world: World, alone: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Desk]:
    """Every case in two processes, once as whole copies and once sharded; and a job for more processes than came."""
    folder, desks = tmp_path_factory.mktemp("desks"), {}
    for layout in LAYOUTS:
        desk = desks[layout] = Desk(folder, layout)
        for name, inputs in CASES.items():
            desk.add(name, inputs(world))
        killed = without_the_end(alone["sail"], folder / f"killed-{layout}")
        desk.add("resumed", sail(world), start=killed)
        desk.add("too_many", few_rows(world), processes=3)
        for name, inputs in scorings(world).items():
            desk.add(name, inputs)
        desk.run()
    return desks


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [case for case in CASES if case != "dro_v"])
def test_two_processes_train_what_one_trains(layout: str, case: str, desks, alone) -> None:
    assert "sail: 2 processes" in desks[layout].log
    assert_equal(desks[layout].trained(case), alone[case])


def test_two_processes_train_a_value_network_beside_the_policy(desks, alone) -> None:
    assert any("value_head" in name for name in alone["dro_v"].weights)
    assert_equal(desks["ddp"].trained("dro_v"), alone["dro_v"])


def test_a_value_network_cannot_be_sharded_and_says_so(desks) -> None:
    error = desks["fsdp2"].answer("dro_v")["error"]
    assert "value network beside the policy" in error["problem"] and error["cure"] == "Use ddp"


def test_the_cases_move_weights_and_reach_what_they_are_for(world: World, alone) -> None:
    for case, inputs in CASES.items():
        if case != "lora":
            start = load_file(inputs(world).start.path / "model.safetensors")
            trained = alone[case].weights
            assert max(float((trained[f"model.safetensors/{n}"] - start[n]).abs().max()) for n in start) > 3e-4
    assert max(step["objective/kto_z0"] for step in alone["kto"].steps) > 0.01
    assert max(step["sail/score_to_plain_ratio"] for step in alone["sail"].steps) > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_one_process_began_two_end(layout: str, desks, alone) -> None:
    assert "resuming at step 15" in desks[layout].log
    assert_equal(desks[layout].trained("resumed"), alone["sail"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_two_processes_began_one_ends(layout: str, world: World, desks, alone, tmp_path: Path) -> None:
    workspace, said = without_the_end(desks[layout].trained("sail"), tmp_path / "workspace"), []
    train(Workspace(workspace, said.append), sail(world))
    assert "resuming at step 15" in said
    assert_equal(Trained(workspace), alone["sail"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_carried_optimizer_is_that_of_one_process(layout: str, desks, alone) -> None:
    one, other = (
        torch.load(trained.path / "trainer" / "policy" / "optimizer.pt", weights_only=True)["state"]
        for trained in (alone["sail"], desks[layout].trained("sail"))
    )
    assert one.keys() == other.keys() and one
    for index, slots in one.items():
        for name, value in slots.items():
            torch.testing.assert_close(value, other[index][name], rtol=1e-3, atol=1e-6)


def test_fewer_processes_than_asked_for_are_refused(desks) -> None:
    error = desks["ddp"].answer("too_many")["error"]
    assert error["problem"] == "3 processes were asked for, 2 started"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["many", "one"])
def test_two_processes_score_what_one_scores(layout: str, name: str, world: World, desks, tmp_path: Path) -> None:
    alone = Workspace(tmp_path, lambda text: None)
    assert score_here(alone, scorings(world)[name]) == desks[layout].answer(name)["result"]
    one, two = (
        {score.response_id: score.logp for score in workspace.read("logps", ResponseLogps)}
        for workspace in (alone, Workspace(desks[layout].jobs[name].workspace, lambda text: None))
    )
    assert list(two) == list(one) and two == pytest.approx(one, rel=1e-6)

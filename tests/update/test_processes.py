"""Two processes are one: equal losses and weights over 20 steps, whole copies or sharded, and across a resume."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sail.core.records import ResponseLogps
from sail.core.store import Workspace
from sail.policy.scoring import score_here
from sail.update.stage import train
from sail.update.worker import PATIENCE
from tests.update.desks import (
    CASES,
    SPREAD,
    Desk,
    Trained,
    assert_equal,
    few_rows,
    sail,
    scorings,
    trained_alone,
    without_the_end,
)
from tests.update.stored import World

LAYOUTS = ["ddp", "fsdp2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), SPREAD)


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, Trained]:
    """Every case in one process."""
    return trained_alone(world, CASES)


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_wait_for_hours_while_one_writes(layout: str, desks) -> None:
    assert f"waits for {PATIENCE}" in desks[layout].log and PATIENCE.total_seconds() > 3600


def test_fewer_processes_than_asked_for_are_refused(desks) -> None:
    error = desks["ddp"].answer("too_many")["error"]
    assert error["problem"] == "3 processes were asked for, 2 started"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["many", "one", "adapter"])
def test_two_processes_score_what_one_scores(layout: str, name: str, world: World, desks, tmp_path: Path) -> None:
    alone = Workspace(tmp_path, lambda text: None)
    assert score_here(alone, scorings(world)[name]) == desks[layout].answer(name)["result"]
    one, two = (
        {score.response_id: score.logp for score in workspace.read("logps", ResponseLogps)}
        for workspace in (alone, Workspace(desks[layout].jobs[name].workspace, lambda text: None))
    )
    assert list(two) == list(one) and two == pytest.approx(one, rel=1e-6)

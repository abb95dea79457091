"""Two processes under DeepSpeed ZeRO are one: equal losses and weights over 20 steps, and across a resume."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sail.core.errors import UserError
from sail.core.records import ResponseLogps
from sail.core.store import Workspace
from sail.policy.scoring import score_here
from sail.update.inputs import UpdateInputs
from sail.update.stage import train
from sail.update.zero import check_asked, check_installed, zero_engine
from tests.update.desks import (
    BATCH,
    CASES,
    DPO,
    SPREAD,
    Desk,
    Trained,
    assert_equal,
    dro_v,
    sail,
    scorings,
    trained_alone,
    without_the_end,
)
from tests.update.stored import World

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install -e '.[deepspeed]'")
RUN = {1: ["sail"], 2: ["sail"], 3: ["sail", "few_rows", "lora", "tied"]}  # by stage
STAGES = list(RUN)


def diverging(world: World) -> UpdateInputs:
    """The first step leads to weights that are not finite."""
    return world.inputs(world.offline(DPO), **BATCH | {"learning_rate": 1e38})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), SPREAD)


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, Trained]:
    """Every case in one process."""
    return trained_alone(world, sorted({name for names in RUN.values() for name in names}))


@pytest.fixture(scope="module")
def desk(world: World, alone: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Every stage's cases in two processes, one that was killed as a process alone, one that cannot end well."""
    folder = tmp_path_factory.mktemp("desk")
    desk = Desk(folder, "zero3")
    for stage, names in RUN.items():
        desk.arguments.append(f"ACCELERATE_DEEPSPEED_ZERO_STAGE={stage}")  # all that zero2.yaml says otherwise
        for name in names:
            desk.add(f"{name}-{stage}", CASES[name](world))
        desk.add(f"resumed-{stage}", sail(world), start=without_the_end(alone["sail"], folder / f"killed-{stage}"))
        desk.add(f"diverging-{stage}", diverging(world))
    desk.add("dro_v", dro_v(world))
    for name in ("many", "adapter"):
        desk.add(name, scorings(world)[name])
    desk.run()
    return desk


@needs_deepspeed
@pytest.mark.parametrize(("stage", "case"), [(stage, case) for stage in RUN for case in RUN[stage]])
def test_two_processes_under_zero_train_what_one_trains(stage: int, case: str, desk, alone) -> None:
    assert f"sail: 2 processes (ZeRO {stage}, cpu)" in desk.log
    assert_equal(desk.trained(f"{case}-{stage}"), alone[case])


@needs_deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_what_one_process_began_two_end_under_zero(stage: int, desk, alone) -> None:
    assert desk.log.count("resuming at step 15") == len(STAGES)
    assert_equal(desk.trained(f"resumed-{stage}"), alone["sail"])


@needs_deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_what_two_processes_began_under_zero_one_ends(stage: int, world: World, desk, alone, tmp_path: Path) -> None:
    workspace, said = without_the_end(desk.trained(f"sail-{stage}"), tmp_path / "workspace"), []
    train(Workspace(workspace, said.append), sail(world))
    assert "resuming at step 15" in said
    assert_equal(Trained(workspace), alone["sail"])


@needs_deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_that_zero_hands_on_is_that_of_one_process(stage: int, desk, alone) -> None:
    one, other = (
        torch.load(trained.path / "trainer" / "policy" / "optimizer.pt", weights_only=True)
        for trained in (alone["sail"], desk.trained(f"sail-{stage}"))
    )
    assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys()
    for index, slots in one["state"].items():
        for name, value in slots.items():
            torch.testing.assert_close(value, other["state"][index][name], rtol=1e-3, atol=1e-6)


@needs_deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_ends_an_update_under_zero(stage: int, desk) -> None:
    error = desk.answer(f"diverging-{stage}")["error"]
    assert "not finite" in error["problem"]
    assert "norms {'policy': inf}" in error["problem"]  # the engine's word for it, torch's is nan


@needs_deepspeed
def test_a_value_network_cannot_be_sharded_by_zero_and_says_so(desk) -> None:
    error = desk.answer("dro_v")["error"]
    assert "value network beside the policy" in error["problem"] and error["cure"] == "Use ddp"


@needs_deepspeed
@pytest.mark.parametrize("name", ["many", "adapter"])
def test_two_processes_under_zero_score_what_one_scores(name: str, world: World, desk, tmp_path: Path) -> None:
    alone = Workspace(tmp_path, lambda text: None)
    assert score_here(alone, scorings(world)[name]) == desk.answer(name)["result"]
    one, two = (
        {score.response_id: score.logp for score in workspace.read("logps", ResponseLogps)}
        for workspace in (alone, Workspace(desk.jobs[name].workspace, lambda text: None))
    )
    assert list(two) == list(one) and two == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize(("variable", "value", "told"), [
    ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "mine.json", "deepspeed_config_file is not read"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offload_optimizer_device is not read"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "offload_param_device is not read"),
    ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0", "stages 1 to 3, not 0"),
])  # fmt: skip
def test_what_a_config_asks_of_deepspeed_beside_a_stage_is_refused(
    variable: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    check_asked()
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=told):
        check_asked()


class Foreign(torch.optim.SGD):
    """An optimizer that torch has not made."""


@needs_deepspeed
def test_an_optimizer_that_is_not_torchs_is_refused_by_zero() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="Foreign is none"):
        zero_engine(model, Foreign(model.parameters(), lr=0.1), 1.0, bf16=False)


def test_zero_where_deepspeed_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="deepspeed is not installed"):
        check_installed()

"""Batch statistics in a step: over the whole batch, however it is cut, and no forward pass where labels are enough."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from sail.core.route_settings import LossSettings, RouteSettings
from sail.core.run_settings import ImportanceSettings, UpdateSettings
from sail.objectives import LOSSES
from sail.policy.loading import load_policy
from sail.policy.rows import Row
from sail.update.items import Item, Side
from sail.update.objective import RouteObjective
from sail.update.statistics import batch_statistics
from tests.update.stored import tiny_leaf


def side(index: int, ref_logp: float) -> Side:
    row = Row(tuple(range(3, 5 + index % 4)), tuple(range(10, 12 + index % 3)))
    return Side(row, ref_logp, float("nan"), from_policy=False, target=0.3 * index)


ITEMS = [Item(f"row-{i}", (side(i, -9.0),), mismatched=side(i + 1, -40.0 - i)) for i in range(7)]


def statistic_of(loss: str, model: torch.nn.Module, items: list[Item], budget: int = 4096) -> tuple[float, dict]:
    row = LOSSES[loss]
    route = RouteSettings.model_validate({"responses": "prefs", "labels": "prefs", "loss": LossSettings(type=loss)})
    objective = RouteObjective(row, row.params, route, ImportanceSettings())
    settings = UpdateSettings.model_validate({"max_tokens_per_microbatch": budget})
    found = batch_statistics(Accelerator(cpu=True), model, {"kto": items}, {"kto": objective}, settings)["kto"]
    return float(found.value), found.metrics


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    return load_policy(tiny_leaf(tmp_path_factory.mktemp("policy")))


def plain_logp(model: torch.nn.Module, row: Row) -> float:
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].detach().double()
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(row.response_ids)[:, None]).sum())


def test_z0_is_the_mean_over_all_strangers_however_they_are_cut_into_microbatches(policy: torch.nn.Module) -> None:
    strangers = [item.mismatched for item in ITEMS if item.mismatched is not None]
    by_hand = sum(plain_logp(policy, s.row) - s.ref_logp for s in strangers) / len(strangers)
    assert by_hand > 1.0
    for budget in (1, 12, 4096):
        value, metrics = statistic_of("kto", policy, ITEMS, budget)
        assert value == pytest.approx(by_hand, abs=1e-4) and metrics == {"objective/kto_z0": value}


def test_z0_of_strangers_that_the_policy_likes_less_than_its_reference_is_zero(policy: torch.nn.Module) -> None:
    items = [replace(item, mismatched=replace(item.mismatched, ref_logp=-0.1)) for item in ITEMS]
    assert statistic_of("kto", policy, items)[0] == 0.0


def test_reward_weights_need_labels_alone() -> None:
    """A model that knows nothing: Identity would fail on any row."""
    value, metrics = statistic_of("rwr", torch.nn.Identity(), ITEMS)
    targets = torch.tensor([0.3 * i for i in range(7)], dtype=torch.float64)
    assert value == pytest.approx(float(targets.exp().mean().log())) and 0.5 < metrics["objective/effective_share"] < 1

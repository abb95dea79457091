"""Single responses, groups and a value network in the update, on rows made by the project's own stages."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from sail.core.artifacts import Artifact
from sail.core.records import ScoredGroup
from sail.core.route_settings import ComponentSettings, LossSettings, RouteSettings, ValueSettings
from sail.core.store import Recipe, Store, Workspace
from sail.labeling.evidence import ScoreEvidence
from sail.labeling.ratings import RatingOptions, ScoredRatings
from sail.labeling.rows import RowOptions, response_rows
from sail.policy.rows import Row
from sail.policy.scoring import score_logps
from sail.policy.value import ValueModel, load_value_model
from sail.update.inputs import UpdateInputs
from sail.update.items import RouteInput, RowSource
from sail.update.stage import update
from tests.update.stored import KEEP, World, groups

VALUE = ComponentSettings(value=ValueSettings(per="token", learning_rate=1e-2))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def scored_route(world: World, loss: LossSettings, kind: str = "score") -> RouteInput:
    """All dataset responses, scored by a rule: the longer the better."""

    def run(workspace: Workspace) -> dict[str, int]:
        scored = [
            ScoredGroup(
                group.prompt.prompt_id,
                tuple(sample.response_id for sample in group.samples),
                tuple(float(len(sample.token_ids)) for sample in group.samples),
            )
            for group in groups(12, "data:prefs")
        ]
        workspace.write("scores", scored, ScoredGroup)
        return {}

    scores = world.store.build(Recipe("scores", 1, {"rule": "length"}, {"responses": world.data}), run)
    rating = RatingOptions(kind)  # type: ignore[arg-type]
    options = RowOptions(rating=rating, mismatch=loss.type == "kto", hygiene=KEEP)
    rows = response_rows(world.store, world.data, ScoredRatings(ScoreEvidence(scores, "rule", "d")), options)
    reference = score_logps(world.store, world.data, world.policy)
    strangers = score_logps(world.store, rows, world.policy, table="mismatched") if options.mismatch else None
    settings = RouteSettings.model_validate({"responses": "prefs", "labels": "rule"})
    return RouteInput("rows", settings, loss, (RowSource(world.data, rows, reference, None, strangers),))


def loss(name: str, **params: float) -> LossSettings:
    return LossSettings(type=name, params=params)


def steps(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact.path / "metrics.jsonl").read_text().splitlines()]


def dro(world: World, **update_settings: object) -> UpdateInputs:
    return replace(world.inputs(scored_route(world, loss("dro_v")), **update_settings), components=VALUE)


def test_kto_starts_at_one_half_with_no_gap(world: World) -> None:
    first = steps(update(world.store, world.inputs(scored_route(world, loss("kto"), "thumbs"), steps=1)))[0]
    assert first["objective/kto_z0"] == pytest.approx(0.0, abs=1e-4)  # policy == reference
    assert first["loss"] == pytest.approx(0.5, abs=1e-4)


def test_the_microbatch_does_not_change_the_step(world: World) -> None:
    for name, kind in (("kto", "thumbs"), ("rwr", "score"), ("dro_p", "score"), ("rloo", "score")):
        route = scored_route(world, loss(name), kind)
        whole = update(world.store, world.inputs(route, steps=3))
        cut = update(Store(world.root / f"cut-{name}"), world.inputs(route, steps=3, max_tokens_per_microbatch=1))
        assert whole.key == cut.key
        for one, two in zip(steps(whole), steps(cut), strict=True):
            assert one == pytest.approx(two, rel=1e-4, abs=1e-5), name


def test_a_value_network_learns_the_scores_beside_the_policy(world: World) -> None:
    made = update(world.store, dro(world, steps=40, train_batch_size=12))
    losses = [step["value/loss"] for step in steps(made)]
    assert losses[0] > 0.2 and losses[-1] < 0.5 * losses[0]
    assert (made.path / "components/value/value_head.safetensors").exists()


def test_microbatches_hold_what_a_value_network_pads_to_and_checkpoints(world: World) -> None:
    seen: list[int] = []

    def look(module: torch.nn.Module, args: tuple[Sequence[Row]]) -> None:
        if isinstance(module, ValueModel):
            assert module.backbone.is_gradient_checkpointing
            seen.append(len(args[0]) * max(row.num_tokens for row in args[0]))

    still = ComponentSettings(value=ValueSettings(per="token", learning_rate=1e-4))
    inputs = replace(dro(world, steps=3, train_batch_size=12), components=still)
    levers = inputs.settings.replace(max_tokens_per_microbatch=24, gradient_checkpointing=True)
    hook = register_module_forward_pre_hook(look)
    cut = update(Store(world.root / "cut-value"), replace(inputs, settings=levers))
    hook.remove()
    assert len(seen) > 3 and max(seen) <= 24
    for one, two in zip(steps(cut), steps(update(world.store, inputs)), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_the_value_network_goes_on_where_the_round_before_left_it(world: World) -> None:
    first = update(world.store, dro(world))
    still = ComponentSettings(value=ValueSettings(per="token", learning_rate=1e-9))
    second = update(world.store, replace(dro(world), start=first, round_index=1, components=still))
    before, after = (load_value_model(made.path / "components/value").head.weight for made in (first, second))
    assert float(before.abs().max()) > 1e-3
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-7)


def test_an_update_with_a_value_network_killed_after_a_step_ends_byte_identical(world: World, tmp_path: Path) -> None:
    inputs = replace(dro(world, save_steps=1), keep_optimizer=True)
    whole = update(world.store, inputs)
    told = 0

    def stop(event: object) -> None:
        nonlocal told
        told += "loss" in getattr(event, "text", "")
        if told > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(Store(tmp_path, stop), inputs)
    assert update(Store(tmp_path), inputs).manifest() == whole.manifest()


def test_groups_keep_all_responses_of_a_prompt_in_one_row(world: World) -> None:
    made = update(world.store, world.inputs(scored_route(world, loss("dro_p")), steps=1))
    assert made.result()["rows/rows"] == 12  # prompts, of two responses each
    assert torch.isfinite(torch.tensor(steps(made)[0]["loss"]))

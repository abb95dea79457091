"""The update stage against an independent trainer, a killed process, and its own promises."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.route_settings import LossSettings
from sail.core.run_settings import ImportanceSettings, LoraSettings
from sail.core.store import Store
from sail.policy.loading import load_policy
from sail.policy.logprobs import token_logps
from sail.policy.scoring import read_logps, score_logps
from sail.update.batches import batch_indices, exact_shares
from sail.update.inputs import UpdateInputs
from sail.update.items import load_items
from sail.update.optimizer import learning_rate
from sail.update.stage import update
from tests.update.stored import World

DPO = LossSettings(type="dpo", params={"beta": 0.5})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "model" / "model.safetensors")


def steps(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in (artifact.path / "metrics.jsonl").read_text().splitlines()]


def largest_difference(one: Artifact, two: Artifact) -> float:
    a, b = weights(one), weights(two)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def hand_written_dpo(world: World, inputs: UpdateInputs) -> dict[str, torch.Tensor]:
    """DPO as one would write it in an afternoon: one pair at a time, plain forwards, the reference in the loop."""
    model, reference = load_policy(world.policy).train(), load_policy(world.policy)
    settings, (route,) = inputs.settings, inputs.routes
    items, shares = load_items(route), exact_shares({route.name: "rest"})
    betas = (settings.adam_beta1, settings.adam_beta2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=betas, eps=settings.adam_epsilon, weight_decay=0.0)

    def logp(net: torch.nn.Module, side: int, index: int) -> torch.Tensor:
        row = items[index].sides[side].row
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        logits = net(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(row.response_ids)[:, None]).double().sum()

    for step in range(settings.steps or 0):
        chosen = batch_indices(step, shares, {route.name: len(items)}, settings.train_batch_size, 0, 0)[route.name]
        optimizer.zero_grad()
        for index in chosen:
            sign = 1 if items[index].p_a == 1.0 else -1
            with torch.no_grad():
                ref_gap = logp(reference, 0, index) - logp(reference, 1, index)
            gap = logp(model, 0, index) - logp(model, 1, index) - ref_gap
            (-torch.nn.functional.logsigmoid(0.5 * sign * gap) / len(chosen)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps or 0, settings)
        optimizer.step()
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def test_offline_dpo_equals_a_hand_written_trainer(world: World) -> None:
    inputs = world.inputs(world.offline(DPO), adam_epsilon=1e-5)  # above rounding, which Adam would enlarge
    trained = weights(update(world.store, inputs))
    expected = hand_written_dpo(world, inputs)
    start = load_file(world.policy.path / "model.safetensors")
    for name, weight in trained.items():
        torch.testing.assert_close(weight, expected[name], atol=5e-6, rtol=0)
    moved = max(float((trained[name] - start[name]).abs().max()) for name in trained)
    assert moved > 1e-3  # the comparison above means something


def test_the_first_loss_is_log_two(world: World) -> None:
    first = steps(update(world.store, world.inputs(world.offline(DPO))))[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first["rewards/accuracies"] <= 1.0


def test_entropy_and_top_1_are_measured_on_the_steps_that_are_asked_for(world: World) -> None:
    route = world.offline(DPO)
    first, second, third = steps(update(world.store, world.inputs(route, entropy_every=2, steps=3)))
    assert not {"policy/entropy", "policy/top1_accuracy"} & second.keys() and "policy/entropy" in third
    items = load_items(route)
    chosen = batch_indices(0, exact_shares({route.name: "rest"}), {route.name: len(items)}, 6, 0, 0)[route.name]
    rows = [side.row for index in chosen for side in items[index].sides]
    scored = token_logps(load_policy(world.policy), rows, statistics=True).statistics
    assert scored is not None and 0 < first["policy/entropy"] < math.log(200)
    assert first["policy/entropy"] == pytest.approx(float(scored.entropy.mean()), abs=1e-5)
    assert first["policy/top1_accuracy"] == pytest.approx(float(scored.is_likeliest.mean()))


def test_the_token_budget_changes_no_key_and_no_weight_beyond_rounding(world: World, tmp_path: Path) -> None:
    route = world.offline(DPO)
    whole = update(world.store, world.inputs(route, max_tokens_per_microbatch=10_000))
    split = update(Store(tmp_path), world.inputs(route, max_tokens_per_microbatch=1))
    assert whole.key == split.key
    assert largest_difference(whole, split) < 2e-5


def test_a_share_of_zero_is_offline_dpo_bit_for_bit(world: World) -> None:
    offline = world.offline(DPO)
    alone = update(world.store, world.inputs(offline))
    online = world.self_labelled(DPO, share=0, sail_coef=0.5)
    beside = update(world.store, world.inputs(offline, online))
    assert alone.key != beside.key
    assert (alone.path / "model/model.safetensors").read_bytes() == (
        beside.path / "model/model.safetensors"
    ).read_bytes()


def test_an_update_killed_after_any_step_ends_byte_identical(world: World, tmp_path: Path) -> None:
    offline, online = world.offline(DPO, share=0.5), world.self_labelled(DPO, share=0.5, sail_coef=0.5)
    inputs = replace(world.inputs(offline, online, save_steps=1), keep_optimizer=True)
    whole = update(world.store, inputs)
    for stop_after in (1, 3):
        told = 0

        def stop(event: object, stop_after: int = stop_after) -> None:
            nonlocal told
            if getattr(event, "kind", "") == "note" and "loss" in getattr(event, "text", ""):
                told += 1
                if told > stop_after:
                    raise KeyboardInterrupt

        root = tmp_path / str(stop_after)
        with pytest.raises(KeyboardInterrupt):
            update(Store(root, stop), inputs)  # dies while step stop_after + 1 is not yet saved
        notes: list[str] = []
        resumed = update(Store(root, lambda event, notes=notes: notes.append(event.text)), inputs)  # type: ignore[misc]
        assert f"resuming at step {stop_after}" in notes
        assert resumed.manifest() == whole.manifest()


def test_carry_continues_the_optimizer_and_restart_does_not(world: World) -> None:
    route = world.offline(DPO)
    first = update(world.store, replace(world.inputs(route, lr_scheduler_type="constant"), keep_optimizer=True))
    second_round = replace(world.inputs(route, lr_scheduler_type="constant"), start=first, round_index=1)
    carried = update(world.store, replace(second_round, carry_from=first, keep_optimizer=True))
    restarted = update(world.store, second_round)
    assert largest_difference(carried, restarted) > 1e-6
    assert steps(carried)[0]["learning_rate"] > steps(restarted)[0]["learning_rate"]  # no second warm-up


def test_importance_weights_are_one_on_fresh_samples(world: World) -> None:
    online = world.self_labelled(DPO, sail_coef=0.5)
    for mode in ("truncate", "sequence_mask"):
        made = update(world.store, world.inputs(online, importance=ImportanceSettings(mode=mode), steps=1))
        first = steps(made)[0]
        assert first["sail/importance_ess"] == pytest.approx(1.0, abs=1e-5)
        assert first["sail/importance_cut_share"] == 0.0


def test_a_fresh_soft_label_at_the_reference_gives_the_plain_term_nothing(world: World) -> None:
    first = steps(update(world.store, world.inputs(world.self_labelled(DPO, sail_coef=0.5), steps=1)))[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert first["grad_norm"] < 1e-3  # z = 0: expected labels cancel, and H = log 2 is the baseline's start


def test_non_finite_losses_stop_the_run_and_keep_its_step_checkpoints(world: World, tmp_path: Path) -> None:
    inputs = world.inputs(world.offline(DPO), learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=0.0, steps=8)
    with pytest.raises(UserError, match="not finite"):
        update(Store(tmp_path), inputs)
    (partial,) = tmp_path.glob("checkpoint-*.partial")
    assert list((partial / "scratch").glob("step-*"))


def test_a_damaged_step_checkpoint_is_named_and_without_it_the_round_starts_anew(world: World, tmp_path: Path) -> None:
    online = world.self_labelled(DPO, sail_coef=0.5)
    inputs = world.inputs(online, learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=0.0, steps=8)
    with pytest.raises(UserError, match="not finite"):
        update(Store(tmp_path), inputs)
    (step,) = tmp_path.glob("checkpoint-*.partial/scratch/step-*")
    position = step / "position.json"
    whole = json.loads(position.read_text())
    (name,) = whole["baselines"]
    position.write_text(json.dumps(whole | {"baselines": {name: {"count": -1, "mean": 0.0}}}))
    with pytest.raises(UserError, match=f"{step.name}/position.json: .*delete its folder"):
        update(Store(tmp_path), inputs)
    shutil.rmtree(step)
    with pytest.raises(UserError, match="not finite"):
        update(Store(tmp_path), inputs)
    assert json.loads(position.read_text()) == whole


def test_lora_trains_an_adapter_and_its_reference_is_the_frozen_start(world: World) -> None:
    route = world.offline(DPO)
    lora = LoraSettings(r=4, alpha=8)
    first = update(world.store, replace(world.inputs(route, learning_rate=1e-2), lora=lora))
    assert (first.path / "model" / "adapter_config.json").exists()
    assert not (first.path / "model" / "model.safetensors").exists()
    before = read_logps(score_logps(world.store, world.data, first))
    second = update(
        world.store, replace(world.inputs(route, learning_rate=1e-2), lora=lora, start=first, round_index=1)
    )
    trained = read_logps(score_logps(world.store, world.data, second))
    again = read_logps(score_logps(Store(world.root / "elsewhere"), world.data, first))
    assert before == again  # training the second round left the first adapter as it was
    assert max(abs(trained[name] - before[name]) for name in before) > 1e-3
    base = read_logps(score_logps(world.store, world.data, world.policy))
    assert max(abs(base[name] - before[name]) for name in before) > 1e-3


def test_metrics_count_steps_and_name_the_ratio_of_the_score_term(world: World) -> None:
    offline, online = world.offline(DPO, share=0.5), world.self_labelled(DPO, share=0.5, sail_coef=0.5)
    logged = steps(update(world.store, world.inputs(offline, online)))
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert logged[-1]["sail/score_to_plain_ratio"] > 0
    assert logged[0]["sail/baseline"] == pytest.approx(0.693147, abs=1e-6)

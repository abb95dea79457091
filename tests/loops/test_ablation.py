"""From an ablation file to runs: arms, seeds, what seeds share, equal budgets, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from loops.ablation import Ablation, is_ablation, load_ablation
from loops.config import load_config
from loops.context import Context
from sail.core.errors import UserError
from sail.core.run_settings import RunSettings
from sail.core.store import Store
from tests.loops.running import small_config, write_config


def base_config(testbed: Path, **changes: Any) -> dict[str, Any]:
    return small_config(testbed, routes={"online": {"share": 0.5}}, **changes)


def load(tmp_path: Path, base: Any, arms: dict[str, Any], *overrides: str, **keys: Any) -> Ablation:
    path = write_config(tmp_path / "ablation.yaml", {"base": base, "arms": arms, **keys})
    return load_ablation(str(path), overrides)


def settings_of(ablation: Ablation, arm: str, seed: int = 0) -> RunSettings:
    (found,) = [run.settings for run in ablation.runs if (run.arm, run.seed) == (arm, seed)]
    return found


SOFT_HARD = {"soft": {"routes.online.label_mode": "soft"}, "hard": {"routes": {"online": {"label_mode": "hard"}}}}


def test_arms_change_the_base_nested_or_dotted(testbed: Path, tmp_path: Path) -> None:
    arms = SOFT_HARD | {"c": {"routes.online.sail_coef": 0.3, "loss.beta": 0.5, "update.steps": 2}}
    ablation = load(tmp_path, base_config(testbed), arms)
    modes = {name: settings_of(ablation, name).phases[0].routes["online"].labels.mode for name in arms}
    assert modes == {"soft": "soft", "hard": "hard", "c": "soft"}
    phase = settings_of(ablation, "c").phases[0]
    assert (phase.routes["online"].sail_coef, phase.loss.params["beta"], phase.update.steps) == (0.3, 0.5, 2)


def test_runs_go_seed_by_seed_in_the_order_of_the_file(testbed: Path, tmp_path: Path) -> None:
    ablation = load(tmp_path, base_config(testbed), SOFT_HARD, seeds=[7, 3])
    assert [run.name for run in ablation.runs] == ["soft-seed7", "hard-seed7", "soft-seed3", "hard-seed3"]
    assert ablation.compare_to == "soft"


def test_a_base_is_a_file_beside_the_ablation_or_a_preset(testbed: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "base.yaml", base_config(testbed))
    assert settings_of(load(tmp_path, "base.yaml", SOFT_HARD), "soft").phases[0].preset == "sail-pr"
    where = [f"base.model_name_or_path={testbed}/sft", f"base.data.prefs.path={testbed}/prefs.jsonl"]
    ablation = load(tmp_path, "dpo", {"low": {"loss.beta": 0.1}, "high": {"loss.beta": 0.5}}, *where)
    assert settings_of(ablation, "high").phases[0].preset == "dpo"


def test_another_preset_brings_its_own_routes(testbed: Path, tmp_path: Path) -> None:
    arms = {"online": {}, "offline": {"preset": "dpo", "num_rounds": 0}}
    offline = settings_of(load(tmp_path, base_config(testbed), arms), "offline").phases[0]
    assert list(offline.routes) == ["offline"]
    assert offline.update.steps == 4, "the rest of the base stays"


def test_a_phase_goes_by_its_name_and_loses_the_routes_of_another_preset(testbed: Path, tmp_path: Path) -> None:
    config = small_config(testbed)
    del config["preset"], config["num_rounds"]
    rounds = {"name": "rounds", "preset": "sail-pr", "num_rounds": 2, "routes": {"online": {"share": 0.4}}}
    config["phases"] = [{"name": "warmup", "preset": "dpo"}, rounds]
    arms = {"a": {}, "b": {"phases.rounds.routes.online.share": 0.2}, "c": {"phases.rounds.preset": "sail-pp"}}
    ablation = load(tmp_path, config, arms, equal={"optimizer_steps": 10})
    shares = {name: settings_of(ablation, name).phases[1].routes["online"].share for name in arms}
    assert shares == {"a": 0.4, "b": 0.2, "c": 0.3}
    assert [phase.update.steps for phase in settings_of(ablation, "a").phases] == [4, 5], "only the last is equalised"


def test_seed_in_any_text_is_the_runs_seed(testbed: Path, tmp_path: Path) -> None:
    ablation = load(tmp_path, base_config(testbed), {"a": {"data.extra": {"path": "bed-{seed}.jsonl"}}}, seeds=[4, 5])
    assert settings_of(ablation, "a", 5).data["extra"].path == "bed-5.jsonl"


# ---- seeds -----------------------------------------------------------------------------------------------------------


def streams(settings: RunSettings, tmp_path: Path) -> dict[str, int]:
    context = Context(settings, Store(tmp_path / "store"), tmp_path)
    phase = settings.phases[0]
    return {
        "prompts": context.seed("prompts", phase=phase), "reward": context.seed("reward", "rm"),
        "samples": context.seed("samples", phase=phase), "labels": context.seed("labels", "online", phase=phase),
        "update": context.seed("update", phase=phase), "evaluation": context.seed("evaluation", phase=phase),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "equal"),
    [
        ({}, {"prompts", "reward"}),
        ({"share": []}, set()),
        ({"share": ["evaluation", "samples"]}, {"evaluation", "samples"}),
    ],
)  # fmt: skip
def test_seeds_share_the_streams_of_share_and_no_other(
    testbed: Path, tmp_path: Path, keys: dict[str, Any], equal: set[str]
) -> None:
    ablation = load(tmp_path, base_config(testbed), {"a": {}}, seeds=[1, 2], **keys)
    first, second = (streams(settings_of(ablation, "a", seed), tmp_path) for seed in (1, 2))
    assert {name for name in first if first[name] == second[name]} == equal


def test_what_is_shared_is_what_the_base_itself_would_have(testbed: Path, tmp_path: Path) -> None:
    """So that `sail run base.yaml` and its ablation fit one reward model."""
    base = write_config(tmp_path / "base.yaml", base_config(testbed, seed=9))
    alone = streams(load_config(str(base)).settings, tmp_path)
    in_arm = streams(settings_of(load(tmp_path, "base.yaml", {"a": {}}, seeds=[1]), "a", 1), tmp_path)
    assert {name for name in alone if alone[name] == in_arm[name]} == {"prompts", "reward"}


def test_a_shared_phase_keeps_the_bases_seed(testbed: Path, tmp_path: Path) -> None:
    config = small_config(testbed)
    del config["preset"], config["num_rounds"]
    config["phases"] = [{"name": "warmup", "preset": "dpo"}, {"name": "rounds", "preset": "sail-pr", "num_rounds": 1}]
    ablation = load(tmp_path, config, {"a": {}}, seeds=[1, 2], share=["prompts", "reward", "warmup"])
    first, second = (settings_of(ablation, "a", seed) for seed in (1, 2))
    assert streams(first, tmp_path) == streams(second, tmp_path), "of the first phase"
    of_rounds = [
        Context(settings, Store(tmp_path), tmp_path).seed("update", phase=settings.phases[1])
        for settings in (first, second)
    ]
    assert of_rounds[0] != of_rounds[1]


# ---- equal budgets ---------------------------------------------------------------------------------------------------


def test_equal_optimizer_steps_are_divided_over_the_rounds(testbed: Path, tmp_path: Path) -> None:
    arms = {"rounds": {"num_rounds": 3}, "offline": {"preset": "dpo", "num_rounds": 0}}
    ablation = load(tmp_path, base_config(testbed), arms, equal={"optimizer_steps": 12})
    assert settings_of(ablation, "rounds").phases[0].update.steps == 4
    assert settings_of(ablation, "offline").phases[0].update.steps == 12


def test_equal_offline_rows_stretch_the_steps_by_one_over_one_minus_m(testbed: Path, tmp_path: Path) -> None:
    shares = {"none": 0.0, "quarter": 0.25, "half": 0.5}
    arms = {name: {"routes.online.share": share} for name, share in shares.items()}
    ablation = load(tmp_path, base_config(testbed), arms, equal={"offline_rows": 8 * 2 * 30})
    steps = {name: settings_of(ablation, name).phases[0].update.steps for name in arms}
    assert steps == {"none": 30, "quarter": 40, "half": 60}


def test_equal_generated_tokens_set_the_prompts_of_a_round(testbed: Path, tmp_path: Path) -> None:
    arms = {
        "two": {}, "four": {"routes.online.num_generations": 4, "routes.online.keep": "random"},
        "offline": {"preset": "dpo", "num_rounds": 0},
    }  # fmt: skip
    ablation = load(tmp_path, base_config(testbed), arms, equal={"generated_tokens": 24 * 2 * 100})
    prompts = {name: settings_of(ablation, name).phases[0].prompts for name in arms}
    assert {name: found and found.per_round for name, found in prompts.items()} == {
        "two": 50,
        "four": 25,
        "offline": 16,
    }


def test_equal_labels_take_those_of_the_rounds_from_the_dataset(testbed: Path, tmp_path: Path) -> None:
    bought = {"routes.online.labels": {"by": "gold", "mode": "sampled"}}
    arms = {"model": {}, "people": bought, "policy": {"routes.online.labels": {"by": "policy", "mode": "soft"}}}
    arms["judge"] = {
        "routes.online.labels": {"by": "judge", "mode": "soft"},
        "labelers.judge": {"kind": "judge", "url": "http://localhost:1", "model": "m"},
    }
    ablation = load(tmp_path, base_config(testbed), arms, equal={"labels": 48})
    limits = {name: settings_of(ablation, name).data["prefs"].limit for name in arms}
    assert limits == {"model": 48, "people": 48 - 2 * 16, "policy": 48, "judge": 48 - 2 * 16}, "only models are free"


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a b": {}}}, "expected names of letters"),
        ({"arms": {}}, "no arm"),
        ({"arms": {"a": {}, "b": {}}}, "arms 'a' and 'b' are the same run"),
        ({"arms": {"a": {"updat.steps": 3}}}, "arms.a: unknown key 'updat'"),
        ({"arms": {"a": {"update.stepz": 3}}}, "Did you mean 'steps'"),
        ({"seeds": [1, 1]}, "all different"),
        ({"seeds": []}, "some seeds"),
        ({"compare_to": "b"}, "no arm 'b'"),
        ({"share": ["promptz"]}, "'promptz' is no stream and no phase.*Did you mean 'prompts'"),
        ({"equal": {"optimizer_steps": 7}}, "equal.optimizer_steps: 7 steps do not divide into 2 rounds"),
        ({"equal": {"optimizer_steps": 8, "offline_rows": 8}}, "both set update.steps"),
        ({"equal": {"generated_tokens": 10}}, "less than one prompt a round"),
        ({"equal": {"labels": 10}, "arms": {"a": {"routes.online.labels": "gold"}}}, "rounds alone take 32 labels"),
        ({"equal": {"offline_rows": 8}, "arms": {"a": {"preset": "iterative-dpo"}}}, "no route has dataset labels"),
        ({"armz": {}}, "Did you mean 'arms'"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    testbed: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    document = {"base": base_config(testbed), "arms": {"a": {}}} | changes
    path = write_config(tmp_path / "wrong.yaml", document)
    with pytest.raises(UserError, match=message):
        load_ablation(str(path))


def test_a_run_is_no_ablation_and_an_ablation_no_run(testbed: Path, tmp_path: Path) -> None:
    run = write_config(tmp_path / "run.yaml", base_config(testbed))
    ablation = write_config(tmp_path / "ablation.yaml", {"base": "run.yaml", "arms": {"a": {}}})
    assert is_ablation(str(ablation)) and not is_ablation(str(run)) and not is_ablation("dpo")
    with pytest.raises(UserError, match="sail run"):
        load_ablation(str(run))
    with pytest.raises(UserError, match="sail ablate"):
        load_config(str(ablation))

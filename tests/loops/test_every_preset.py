"""Every preset runs end to end on the testbed: two rounds of two steps where it samples, one update where not."""

from pathlib import Path
from typing import Any

import pytest

from loops.documents import preset_names, read_preset
from sail.results import load_run
from tests.loops.running import Zygote, small_config, write_config

ELSEWHERE = {  # they need what this testbed has not: a judge, an autoencoder
    "oaif": "test_labels_end_to_end.py",
    "self-rewarding": "test_labels_end_to_end.py",
    "osp": "test_policy_judge.py",
    "fpo": "test_fpo.py",
}
LONGER = {"rwr": {"steps": 2, "train_batch_size": 16}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output root, so that all presets share data, reward model and the start's evaluation."""
    return tmp_path_factory.mktemp("presets")


def config_of(name: str, testbed: Path) -> dict[str, Any]:
    preset = read_preset(name)
    config = small_config(testbed, preset=name) | {"num_rounds": min(2, preset["num_rounds"])}
    config["data"] |= {"demos": {"path": str(testbed / "prefs.jsonl"), "limit": 48}}
    prompts_from = preset.get("prompts", {}).get("from", "prompts")
    if prompts_from == "prompts":
        config["prompts"] = {"from": "prompts", "per_round": 16}
    else:  # the sources of a list meet on the prompts of their dataset
        config["prompts"] = {"from": prompts_from}
    config["update"] = {"steps": 2, "train_batch_size": 8, "learning_rate": 5e-4} | LONGER.get(name, {})
    if preset.get("routes", {}) == {}:
        del config["update"]
    return config


def test_the_presets_left_out_run_elsewhere() -> None:
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in (Path(__file__).parent / file).read_text()


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in ELSEWHERE])
def test_a_preset_runs_end_to_end(name: str, testbed: Path, root: Path, sail: Zygote) -> None:
    done = sail.run("run", write_config(root / f"{name}.yaml", config_of(name, testbed)), cwd=root)
    assert done.returncode == 0, done.err + done.out[-2000:]
    run = load_run(root / "runs" / name)
    assert run.metrics()[-1]["eval/reward"] == pytest.approx(run.metrics()[-1]["eval/reward/gold"])


def test_responses_of_several_sources_are_shown_where_they_met(testbed: Path, root: Path, sail: Zygote) -> None:
    config = write_config(root / "spin.yaml", config_of("spin", testbed))
    assert sail.run("run", config, cwd=root).returncode == 0
    pair = load_run(root / "runs" / "spin").round(0).pairs()[0]
    shown = sail.run("show", root / "runs" / "spin", pair["b_id"], cwd=root).out
    assert "round 0, samples/" in shown and "(responses-" in shown

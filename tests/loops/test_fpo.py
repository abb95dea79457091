"""FPO by `sail run`: an offline update on the testbed with an autoencoder trained on its model, and its refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from sail.core.records import SampleGroup
from sail.policy.loading import load_policy, resolve_model
from sail.policy.rows import Row
from tests.loops.running import NO_EVALUATION, Zygote, committed, planned, small_config, store_of, write_config
from tests.policy.tiny_sae import train_sae

ROWS = [Row((1, 17 + index, 3), tuple(range(5 + index, 12 + index))) for index in range(16)]


@pytest.fixture(scope="module")
def settings(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("sae") / "sae.safetensors"
    train_sae(load_policy(resolve_model(str(testbed / "sft"))), ROWS, layer=0, width=64, path=path)
    small = small_config(testbed, evaluation=NO_EVALUATION, num_rounds=0)
    for section in ("labelers", "prompts", "generation"):
        del small[section]
    return small | {"preset": "fpo", "loss": {"beta": 2.0}, "components": {"sae": {"path": str(path), "layer": 0}}}


def test_an_offline_run_scores_the_reference_once_and_trains(
    settings: dict[str, Any], sail: Zygote, tmp_path: Path
) -> None:
    config, out = write_config(tmp_path / "c.yaml", settings), tmp_path / "run"
    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert done.announced[1]["features"] == 1
    (features,) = [artifact for artifact in committed(store_of(out)).values() if artifact.stage == "features"]
    data = committed(store_of(out))[features.manifest()["inputs"]["responses"]]
    responses = sum(len(group.samples) for group in data.read(SampleGroup, "groups"))
    assert features.result()["responses"] == responses > 0 and features.result()["active_per_response"] > 1
    made = [json.loads(line) for line in (out / "rounds/000/checkpoint/metrics.jsonl").read_text().splitlines()]
    assert made[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert abs(made[-1]["loss"] - made[0]["loss"]) > 1e-3
    again = planned(config, ["loss.alpha=0.1", "components.sae.k=7"], out)
    assert [artifact for artifact in again if not artifact.committed] == [
        artifact for artifact in again if artifact.stage == "checkpoint"
    ], "k and alpha change the update alone"


@pytest.mark.parametrize(("sae", "problem"), [
    (None, "needs a sparse autoencoder"),
    ({"layer": 9}, "layer 9 of a model with"),
    ({"path": "nowhere.safetensors"}, "no such file"),
])  # fmt: skip
def test_what_fpo_lacks_is_refused_before_the_update(
    sae: dict[str, Any] | None, problem: str, settings: dict[str, Any], sail: Zygote, tmp_path: Path
) -> None:
    changed = None if sae is None else settings["components"]["sae"] | sae
    config = write_config(tmp_path / "c.yaml", settings | {"components": {"sae": changed}})
    done = sail.run("run", config, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2 and problem in done.error

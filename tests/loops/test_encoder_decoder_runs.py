"""A T5 goes through the loop like any other policy: offline, online, killed, as an adapter; vLLM is refused."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sail import load_run
from sail.core.artifacts import leaf
from sail.core.records import ResponseLogps, SampleGroup
from sail.policy.loading import load_policy
from sail.testbed.words import VOCABULARY
from tests.encoder_decoder_fixtures import EOS_ID, make_tiny_t5
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    digests,
    kill_at,
    planned,
    small_config,
    store_of,
    write_config,
)
from tests.policy.oracle import oracle_logps

WORDS = [word for word in VOCABULARY if not word.startswith("<")]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5") / "model"
    make_tiny_t5(path, WORDS, tied=False)
    return path


def online(testbed: Path, t5: Path, **changes: Any) -> dict[str, Any]:
    return small_config(testbed, model_name_or_path=str(t5), hygiene={"truncated": "keep", "empty": "keep"}, **changes)


def test_sft_then_dpo_learn_from_a_dataset(testbed: Path, t5: Path, sail: Zygote, tmp_path: Path) -> None:
    settings = {
        "model_name_or_path": str(t5),
        "data": {"prefs": {"path": str(testbed / "prefs.jsonl"), "limit": 48}},
        "phases": [
            {"preset": "sft", "name": "sft", "routes": {"demos": {"responses": "prefs"}},
             "update": {"steps": 30, "train_batch_size": 16, "learning_rate": 1e-2}},
            {"preset": "dpo", "name": "dpo", "update": {"steps": 10, "train_batch_size": 16, "learning_rate": 3e-3}},
        ],
    }  # fmt: skip
    out = tmp_path / "run"
    done = sail.run("run", write_config(tmp_path / "c.yaml", settings), "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    steps = [line for line in load_run(out).metrics() if line["kind"] == "step"]
    sft, dpo = ([line for line in steps if line["phase"] == name] for name in ("sft", "dpo"))
    assert sft[-1]["loss"] < 0.6 * sft[0]["loss"]
    assert dpo[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference agree, dropout or not
    assert dpo[-1]["rewards/margins"] > 0.1
    assert_stored_logps_are_the_oracle_s(store_of(out), out / "rounds" / "000" / "checkpoint" / "model")


def assert_stored_logps_are_the_oracle_s(store: Path, reference: Path) -> None:
    """The reference log-probs of the dpo phase, and the shape of the rows they were computed on."""
    artifacts = {artifact.stage: artifact for artifact in committed(store).values()}
    stored = {record.response_id: record.logp for record in artifacts["logps"].read(ResponseLogps, "logps")}
    groups = artifacts["data"].read(SampleGroup, "groups")
    assert len(stored) > 40
    model = load_policy(leaf(reference))
    for group in groups[:8]:
        assert group.prompt.token_ids[-1] == EOS_ID
        for sample in group.samples:
            assert sample.token_ids[-1] == EOS_ID and sample.token_ids.count(EOS_ID) == 1
            (expected,), _ = oracle_logps(model, [(group.prompt.token_ids, sample.token_ids)])
            assert stored[sample.response_id] == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize(
    ("preset", "logged"),
    [("kto", "objective/kto_z0"), ("rwr", "objective/effective_share"), ("dro-v", "value/loss"), ("dro-p", "loss")],
)
def test_single_responses_teach_a_t5(
    preset: str, logged: str, testbed: Path, t5: Path, sail: Zygote, tmp_path: Path
) -> None:
    update = {"steps": 12, "train_batch_size": 16, "learning_rate": 3e-3}
    settings = small_config(testbed, preset=preset, model_name_or_path=str(t5), num_rounds=0, update=update)
    settings |= {"evaluation": NO_EVALUATION, "prompts": None}
    settings["labelers"] = {"rm": {"kind": "callable", "path": "sail.testbed.gold:hump"}}
    out = tmp_path / "run"
    done = sail.run("run", write_config(tmp_path / "c.yaml", settings), "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    steps = [line for line in load_run(out).metrics() if line["kind"] == "step"]
    assert len(steps) == 12 and logged in steps[0]
    assert abs(steps[-1]["logps/responses"] - steps[0]["logps/responses"]) > 0.1


def test_a_killed_online_run_ends_byte_identical(testbed: Path, t5: Path, sail: Zygote, tmp_path: Path) -> None:
    """SAIL-PR: samples in process, a reward model fitted on the T5 itself, importance weights, an evaluation."""
    config = write_config(tmp_path / "c.yaml", online(testbed, t5, num_rounds=1))
    out, whole = tmp_path / "a" / "run", tmp_path / "b" / "run"
    artifacts = planned(config, [], out)
    _, samples, _ = (artifact.id for artifact in artifacts if artifact.stage == "samples")  # the others evaluate
    (checkpoint,) = (artifact.id for artifact in artifacts if artifact.stage == "checkpoint")
    for at in (
        kill_at(f"os.rename .*/{samples}.partial/.*groups-00001.parquet"),
        kill_at(f"shutil.rmtree .*/{checkpoint}.partial/scratch/step-00000002"),
    ):
        done = sail.run("run", config, "--out", out, cwd=tmp_path, at=at)
        assert done.returncode == -signal.SIGKILL, done.err
    for folder in (out, whole):
        done = sail.run("run", config, "--out", folder, cwd=tmp_path)
        assert done.returncode == 0, done.err
    assert digests(store_of(out)) == digests(store_of(whole))
    metrics = load_run(out).round(0).metrics()
    assert metrics["objective/kl"] > 0 and 0 <= metrics["eval/win_rate"] <= 1
    weights = [line["sail/importance_ess"] for line in load_run(out).metrics() if line["kind"] == "step"]
    assert weights[0] == pytest.approx(1.0, abs=1e-4)  # fresh samples: recorded and trained log-probs agree


def test_an_adapter_on_a_t5_trains_and_samples(testbed: Path, t5: Path, sail: Zygote, tmp_path: Path) -> None:
    settings = online(testbed, t5, num_rounds=2, evaluation=NO_EVALUATION, lora={"r": 4, "alpha": 8})
    out = tmp_path / "run"
    done = sail.run("run", write_config(tmp_path / "c.yaml", settings), "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    model = out / "rounds" / "001" / "checkpoint" / "model"
    assert (model / "adapter_config.json").exists()
    adapted, base = load_policy(leaf(model)), load_policy(leaf(t5))
    inputs = {"input_ids": torch.tensor([[5, 6, 1]]), "decoder_input_ids": torch.tensor([[0, 7]])}
    with torch.no_grad():
        assert float((adapted(**inputs).logits - base(**inputs).logits).abs().max()) > 1e-4


def test_vllm_is_refused_before_anything_is_written(testbed: Path, t5: Path, sail: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", online(testbed, t5, generation={"engine": "vllm"}))
    for command in ("plan", "run"):
        done = sail.run(command, config, "--out", tmp_path / "runs" / "x", cwd=tmp_path)
        assert done.returncode == 2
        assert "generation.engine" in done.error and "encoder-decoder" in done.error
        assert "Set generation.engine: transformers" in done.error
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}

"""A LoRA run with a real vLLM server: one start, adapters loaded by version, no merged copy of the weights."""

import json
from pathlib import Path

import pytest

from tests.loops.running import NO_EVALUATION, Zygote, small_config, write_config

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_adapters_of_a_run_are_loaded_into_one_server(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    settings = small_config(testbed, evaluation=NO_EVALUATION, lora={"r": 4}, num_rounds=3)
    settings["generation"] |= {"engine": "vllm"}
    settings["vllm"] = {"kv_cache_gib": 0.25, "max_num_seqs": 16, "concurrency": 8, "start_timeout_s": 400}
    out = tmp_path / "run"
    done = sail.run("run", write_config(tmp_path / "c.yaml", settings), "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    logs = out / "logs" / "attempt-1"
    assert [path.name for path in logs.glob("vllm-*.log")] == ["vllm-1.log"]
    synced = [json.loads(line) for line in (logs / "weight-sync.jsonl").read_text().splitlines()]
    assert len({entry["version"] for entry in synced}) == 3 and {entry["way"] for entry in synced} == {"load adapter"}
    assert max(entry["max_abs_nats"] for entry in synced) < 1e-3
    assert not (logs / "merged").exists()
    checkpoint = out / "rounds" / "002" / "checkpoint" / "model"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()

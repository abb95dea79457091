"""The commands around a run: init, plan, methods, status, show, report, doctor; and reading a run from Python."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from loops.cli import main
from loops.config import resolve
from loops.documents import preset_names
from sail import load_run
from sail.core.errors import UserError
from sail.core.metrics import METRICS


def exit_code(*words: str) -> int:
    """Run `sail WORDS` in this process."""
    before, sys.argv = sys.argv, ["sail", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def command(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `sail WORDS` prints; fails if it exits with an error."""
    assert exit_code(*words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run: SAIL-PR, two rounds, a reward model fitted on the way."""
    root = tmp_path_factory.mktemp("commands")
    config = {
        "preset": "sail-pr",
        "model_name_or_path": str(testbed / "sft"),
        "data": {"prefs": {"path": str(testbed / "prefs.jsonl")}},
        "labelers": {
            "rm": {"kind": "reward_model", "fit": {"data": "prefs", "steps": 4, "learning_rate": 1e-3}},
            "gold": {"kind": "callable", "path": "sail.testbed.gold:hump"},
        },
        "prompts": {"from": "prefs", "per_round": 8},
        "num_rounds": 2,
        "generation": {"engine": "transformers", "max_completion_length": 12},
        "update": {"steps": 2, "train_batch_size": 4, "learning_rate": 1e-3},
        "evaluation": {"num_prompts": 6, "scorers": ["gold"]},
        "cpu_threads": 1,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    assert exit_code("run", str(root / "config.yaml"), "--out", str(root / "runs" / "small")) == 0
    return root / "runs" / "small"


def test_methods_as_json_lists_every_registry_with_the_same_columns(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(command("methods", "--json", capsys=capsys))
    assert set(listed) == {"losses", "labelers", "engines", "pairings", "presets"}
    names = {kind: {row["name"] for row in rows} for kind, rows in listed.items()}
    assert {"sft", "dpo", "ipo", "slic"} <= names["losses"]
    assert {"dataset", "policy", "reward_model", "callable"} <= names["labelers"]
    assert names["engines"] == {"vllm", "transformers"}
    assert {"all", "best_worst", "random"} <= names["pairings"]
    assert {"sft", "dpo", "ipo", "slic", "iterative-dpo", "sail-dp", "sail-pp", "sail-pr", "sail-mix"} <= names[
        "presets"
    ]
    for rows in listed.values():
        for row in rows:
            assert {"name", "unit", "needs", "link", "source", "status"} <= set(row)
            assert row["source"] and row["status"] and row["unit"]


@pytest.mark.parametrize("preset", preset_names())
def test_a_starter_config_of_every_preset_resolves(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = command("init", preset, capsys=capsys)
    assert text.startswith(f"# A run of the method '{preset}'")
    document = yaml.safe_load(text)
    settings = resolve(document)
    assert settings.phases[0].preset == preset


def test_several_processes_are_refused_rather_than_run_twice(
    testbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    where = (f"model_name_or_path={testbed / 'sft'}", f"data.prefs.path={testbed / 'prefs.jsonl'}")
    assert exit_code("run", "dpo", *where, "--out", str(tmp_path / "runs" / "two")) == 2
    assert "WORLD_SIZE is 2" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_starter_config_names_its_own_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    assert exit_code("init", "dpo", "--out", str(mine)) == 0
    assert f"sail run {mine} --smoke" in mine.read_text()


def test_a_starter_config_never_overwrites_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    assert exit_code("init", "dpo", "--out", str(tmp_path / "mine.yaml")) == 2
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_plan_computes_nothing_and_says_where_models_come_from(
    testbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "planned"
    printed = command(
        "plan", "dpo", f"model_name_or_path={testbed / 'sft'}", f"data.prefs.path={testbed / 'prefs.jsonl'}",
        "--out", str(out), capsys=capsys,
    )  # fmt: skip
    assert "dpo: one offline update from" in printed
    assert "checkpoint" in printed
    assert "activ." in printed and "scoring" in printed
    assert not out.parent.exists()


def test_status_and_report_show_the_rounds(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = command("status", str(finished), capsys=capsys)
    assert "complete" in status
    (finished / "report.html").unlink()
    assert "report.html" in command("report", str(finished), capsys=capsys)
    assert "<html" in (finished / "report.html").read_text()


def test_a_run_that_was_stopped_before_its_first_record_has_a_status(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "runs" / "begun"
    shutil.copytree(finished, begun, symlinks=True)
    (begun / "run.json").unlink()
    (tmp_path / "runs" / ".store" / "samples-0.partial").mkdir(parents=True)
    assert command("status", str(begun), capsys=capsys).splitlines() == [
        "nothing finished yet: the same `sail run` goes on",
        "half done in the store: samples-0.partial",
    ]
    assert exit_code("report", str(begun)) == 2
    assert "has finished nothing yet" in capsys.readouterr().err


def test_one_id_is_followed_from_sample_to_label(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = load_run(finished).round(1).pairs("online")[0]
    shown = command("show", str(finished), pair["a_id"], capsys=capsys)
    for place in ("samples/online", "scores/online", "pairs/online"):
        assert f"round 1, {place}" in shown
    assert pair["pair_id"] in command("show", str(finished), pair["pair_id"], capsys=capsys)


def test_the_doctor_takes_a_config_whose_name_another_has(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "config.yaml"
    other.touch()
    (tmp_path / "runs" / "config").mkdir(parents=True)
    (tmp_path / "runs" / "config" / "plan.json").write_text(json.dumps({"config": str(other), "artifacts": []}))
    assert exit_code("plan", str(finished.parents[1] / "config.yaml")) == 2
    assert exit_code("doctor", str(finished.parents[1] / "config.yaml"), "--no-server") == 0


def test_the_doctor_names_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    printed = command("doctor", "--no-server", capsys=capsys)
    assert torch.__version__.split("+")[0] in printed
    assert "vLLM seen working" in printed and "--worker-extension-cls" in printed


@pytest.mark.vllm
def test_the_doctor_walks_a_server_from_start_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    printed = command("doctor", capsys=capsys)
    steps = [line.split()[0] for line in printed.splitlines() if " s  " in line]
    assert steps == ["start", "sample", "repeat", "sync", "sample", "stop"]
    assert "4 of 4 prompts gave the same bits" in printed and "0 processes left" in printed
    assert "reload from disk; server and trainer differ by" in printed


def test_a_run_reads_from_python(finished: Path) -> None:
    run = load_run(finished)
    assert run.num_rounds == 2
    last = run.round(-1)
    assert last.metrics()["eval/reward"] == run.metrics()[-1]["eval/reward"]
    pairs = last.pairs("online")
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names)
    assert pairs[0]["chosen"][0]["role"] == "assistant"
    assert len(last.samples("online")) == 8
    assert (last.checkpoint / "config.json").exists()
    with pytest.raises(UserError, match="no round 7"):
        run.round(7)
    with pytest.raises(UserError, match="is no run"):
        load_run(finished.parent)


def test_metrics_never_rewind_and_have_names(finished: Path) -> None:
    lines = load_run(finished).metrics()
    steps = [line["global_step"] for line in lines if line["kind"] == "step"]
    assert steps == sorted(steps) == list(range(1, len(steps) + 1))
    known = {name.split("<")[0] for name in METRICS}
    places = {"kind", "global_step", "round", "phase", "route", "step"}
    for line in lines:
        for name in set(line) - places:
            assert name in METRICS or any(name.startswith(prefix) for prefix in known if prefix.endswith("/")), name


def test_every_round_loads_with_from_pretrained(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for index in range(2):
        folder = load_run(finished).round(index).checkpoint
        assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
        assert AutoTokenizer.from_pretrained(folder).chat_template

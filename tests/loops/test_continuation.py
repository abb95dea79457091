"""The same command again: continuing, extending, changing, sharing a store, stopping with Ctrl-C."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from loops.config import load_config
from sail.core import labeler_settings, route_settings, run_settings
from sail.core.settings import Role, Settings, role_of
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    copied,
    digests,
    kill_at,
    linked,
    planned,
    run_afresh,
    small_config,
    stamps,
    stop_at,
    store_of,
    weights,
    write_config,
)


@pytest.fixture(scope="module")
def finished(testbed: Path, sail: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, out) of a finished run of two rounds; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "finished.yaml", small_config(testbed))
    done = sail.run("run", config, "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.err
    return config, folder / "run"


@pytest.mark.parametrize("optimizer", ["carry", "restart"])
def test_more_rounds_continue_a_finished_run(optimizer: str, testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    settings = small_config(testbed, evaluation=NO_EVALUATION, num_rounds=3, round={"optimizer": optimizer})
    config, out, at_once = write_config(tmp_path / "c.yaml", settings), tmp_path / "a" / "c", tmp_path / "b" / "c"
    assert sail.run("run", config, "--out", out, cwd=tmp_path).returncode == 0
    three, written, links = digests(store_of(out)), stamps(store_of(out)), linked(out)

    done = sail.run("run", config, "num_rounds=5", "--out", out, cwd=tmp_path)

    assert done.returncode == 0, done.err
    reused, new = done.announced
    assert reused == len({path.split("/")[0] for path in three})
    assert new["checkpoint"] == new["samples"] == new["scores"] == 2 and not {"data", "prompts", "reward"} & set(new)
    assert stamps(store_of(out)).items() >= written.items(), "an artifact of rounds 0-2 was written again"
    assert linked(out).items() >= links.items()
    assert len([name for name in linked(out) if name.endswith("/checkpoint")]) == 5
    assert sail.run("run", config, "num_rounds=5", "--out", at_once, cwd=tmp_path).returncode == 0
    assert digests(store_of(out)) == digests(store_of(at_once)), "3 + 2 rounds are not 5"
    assert (out / "metrics.jsonl").read_bytes() == (at_once / "metrics.jsonl").read_bytes()


def test_a_carried_optimizer_changes_the_second_round(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    """Else the two cases above would be one."""
    config = write_config(tmp_path / "c.yaml", small_config(testbed, evaluation=NO_EVALUATION))
    for optimizer in ("carry", "restart"):
        done = sail.run("run", config, f"round.optimizer={optimizer}", "--out", tmp_path / optimizer, cwd=tmp_path)
        assert done.returncode == 0, done.err
    assert weights(tmp_path / "carry", 0) == weights(tmp_path / "restart", 0)
    assert weights(tmp_path / "carry", 1) != weights(tmp_path / "restart", 1)


def test_adapters_of_a_run_stand_on_its_model_wherever_that_has_moved(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    """Another model lies at the old path; the second run's new round is that of a run nothing was moved under."""
    model, elsewhere = copied(testbed / "sft", tmp_path / "model"), tmp_path / "elsewhere"
    changes = {"labelers": {"rm": {"kind": "callable", "path": "sail.testbed.gold:hump"}}, "lora": {"r": 4}}
    settings = small_config(testbed, evaluation=NO_EVALUATION, model_name_or_path=str(model), **changes)
    config, out, at_once = write_config(tmp_path / "c.yaml", settings), tmp_path / "a" / "c", tmp_path / "b" / "c"
    assert sail.run("run", config, "--out", at_once, cwd=tmp_path).returncode == 0
    assert sail.run("run", config, "num_rounds=1", "--out", out, cwd=tmp_path).returncode == 0
    model.rename(elsewhere)
    tensors = load_file(copied(elsewhere, model) / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})

    done = sail.run("run", config, f"model_name_or_path={elsewhere}", "--out", out, cwd=tmp_path)

    assert done.returncode == 0, done.err
    assert done.announced[1]["checkpoint"] == 1
    last = [run / "rounds" / "001" / "checkpoint" / "model" / "adapter_model.safetensors" for run in (out, at_once)]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_another_beta_reuses_all_that_does_not_depend_on_it(
    finished: tuple[Path, Path], sail: Zygote, tmp_path: Path
) -> None:
    config, folder = finished[0], copied(finished[1].parent, tmp_path / "copy")
    out, other = folder / "run", folder / "other-beta"
    before, written = committed(store_of(out)), stamps(store_of(out))
    shared = [  # everything up to the first update, and how the starting policy does
        artifact.id for artifact in planned(config, [], out)
        if artifact.stage in ("data", "prompts", "reward") or not _after_an_update(artifact.id, before)
    ]  # fmt: skip

    done = sail.run("run", config, "loss.beta=0.37", "--out", other, cwd=tmp_path)

    assert done.returncode == 0, done.err
    reused, new = done.announced
    assert new["checkpoint"] == 2 and not {"data", "prompts", "reward"} & set(new)
    assert (new["samples"], new["scores"]) == (3, 5), "held-out samples after both rounds, and round 1's"
    assert new["pairs"] == 1, "reward labels of round 0 do not know beta"
    assert new["evaluation"] == 3, "margins are scaled by beta"
    assert reused == len([id for id in shared if not id.startswith("evaluation")])
    assert stamps(store_of(out)).items() >= written.items()
    assert linked(other)["rounds/000/samples/online"] == linked(out)["rounds/000/samples/online"]
    assert linked(other)["rounds/000/checkpoint"] != linked(out)["rounds/000/checkpoint"]


def _after_an_update(id: str, artifacts: dict[str, Any]) -> bool:
    """Some ancestor of the artifact, or itself, is a trained checkpoint."""
    if id.startswith("checkpoint"):
        return True
    inputs = artifacts[id].manifest()["inputs"].values()
    return any(_after_an_update(source, artifacts) for source in inputs if source in artifacts)


# section -> a value other than the small config's for every field that is marked execution(...)
_EXECUTION = {
    "labelers.rm.fit": {"max_tokens_per_microbatch": 300},
    "labelers.rm": {"batch_size": 3},
    "generation": {"shard_size": 7, "batch_size": 5},
    "vllm": {
        "mode": "external", "server_urls": "[http://127.0.0.1:1]", "port": 5555, "kv_cache_gib": 3, "max_num_seqs": 8,
        "max_model_len": 64, "gpus": "[0]", "cores": "0", "start_timeout_s": 5,
        "request_timeout_s": 6, "max_retries": 1, "concurrency": 2, "verify_tolerance": 0.1,
        "host": "0.0.0.0", "max_restarts": 7, "during_update": "stop", "weight_transfer": "ipc",
    },
    "evaluation": {"stop_on_alarm": "true"},
    "update": {"max_tokens_per_microbatch": 300, "gradient_checkpointing": "true", "compile": "true", "save_steps": 3,
               "entropy_every": 2},
    "": {"cpu_threads": 2, "log_interval_s": 1.5, "launch": "{num_processes: 2}"},
}  # fmt: skip
_SECTIONS: dict[str, type[Settings]] = {
    "labelers.rm.fit": run_settings.RewardFitSettings,
    "labelers.rm": run_settings.RewardModelLabeler,
    "generation": run_settings.GenerationSettings,
    "vllm": run_settings.VllmSettings,
    "update": run_settings.UpdateSettings,
    "evaluation": run_settings.EvaluationSettings,
    "": run_settings.RunSettings,
}
_NAMES_ONLY = {"PhaseSettings": {"name", "preset", "num_rounds"}}
_NOT_IN_THE_CONFIG = {  # tests/labeling/test_judge.py and tests/update/test_launch.py look at keys
    "JudgeLabeler": {"url", "concurrency", "timeout_s", "max_retries", "max_error_share", "api_key_env"},
    "HumanLabeler": {"folder", "format"},
    "LaunchSettings": {"accelerate_config", "num_processes", "gpus", "command"},
}


def _execution_fields(section: type[BaseModel]) -> set[str]:
    return {name for name in section.model_fields if role_of(section, name) is Role.EXECUTION}


def _assignments() -> Iterator[str]:
    for section, fields in _EXECUTION.items():
        yield from (f"{section}.{name}={value}".removeprefix(".") for name, value in fields.items())


def test_the_list_of_execution_settings_is_complete() -> None:
    marked = {
        section.__name__: _execution_fields(section)
        for section in {**vars(run_settings), **vars(labeler_settings), **vars(route_settings)}.values()
        if isinstance(section, type) and issubclass(section, Settings) and _execution_fields(section)
    }
    listed = {_SECTIONS[section].__name__: set(fields) for section, fields in _EXECUTION.items()}
    assert listed | _NAMES_ONLY | _NOT_IN_THE_CONFIG == marked


@pytest.mark.parametrize("assignment", [*_assignments(), "labelers.rm.vllm={concurrency: 3}"])
def test_execution_settings_change_no_key(assignment: str, finished: tuple[Path, Path]) -> None:
    config, out = finished
    assert load_config(str(config), [assignment]).settings != load_config(str(config)).settings, "no change at all"
    assert planned(config, [assignment], out) == planned(config, [], out)


@pytest.mark.parametrize("assignment", [
    "seed=1", "loss.beta=0.2", "routes.online.sail_coef=0.3", "routes.online.share=0.25", "generation.temperature=0.9",
    "update.learning_rate=1e-4", "prompts.per_round=12", "labelers.rm.fit.steps=3", "vllm.dtype=float32",
    "labelers.rm.vllm={dtype: bfloat16}",
])  # fmt: skip
def test_settings_with_a_meaning_change_the_last_checkpoint(assignment: str, finished: tuple[Path, Path]) -> None:
    config, out = finished
    engine = ["generation.engine=vllm"] if assignment.startswith("vllm") else []
    last = [
        [artifact.key for artifact in planned(config, overrides, out) if artifact.stage == "checkpoint"][-1]
        for overrides in (engine, [*engine, assignment])
    ]
    assert last[0] != last[1]


@pytest.mark.parametrize("assignment", ["update.save_steps=100", "generation.shard_size=5", "generation.batch_size=6"])
def test_how_work_is_cut_changes_no_weight(
    assignment: str, finished: tuple[Path, Path], sail: Zygote, tmp_path: Path
) -> None:
    config, _ = finished
    overrides = ["evaluation.num_prompts=0", "evaluation.scorers=[]"]
    runs = [tmp_path / "as-configured" / "run", tmp_path / "otherwise" / "run"]
    for run, more in zip(runs, ([], [assignment]), strict=True):
        done = sail.run("run", config, *overrides, *more, "--out", run, cwd=tmp_path)
        assert done.returncode == 0, done.err
    assert linked(runs[0]) == linked(runs[1])
    assert [weights(runs[0], i) for i in (0, 1)] == [weights(runs[1], i) for i in (0, 1)]


def test_a_finished_run_has_nothing_to_do(finished: tuple[Path, Path]) -> None:
    config, out = finished
    before, attempts = stamps(store_of(out)), sorted((out / "logs").iterdir())
    done = run_afresh("run", config, "--out", out, cwd=out.parent)
    assert done.returncode == 0 and "nothing to do" in done.out
    assert done.announced == (len(planned(config, [], out)), {})
    assert stamps(store_of(out)) == before and sorted((out / "logs").iterdir()) == attempts


def test_a_finished_run_and_a_plan_read_no_table_and_load_no_model(
    finished: tuple[Path, Path], sail: Zygote, tmp_path: Path
) -> None:
    """Without its imports it then ends within seconds, however long it took."""
    config, out = finished
    at_work = kill_at(r"^open \S*/\.store/\S*(\.parquet|/model/)")
    for command in ("run", "plan"):
        assert sail.run(command, config, "--out", out, cwd=out.parent, at=at_work).returncode == 0
    assert sail.run("run", config, "--out", tmp_path / "new", cwd=tmp_path, at=at_work).returncode == -signal.SIGKILL


def test_a_plan_computes_and_writes_nothing(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", small_config(testbed))
    done = sail.run("plan", config, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_the_second_of_two_processes_on_one_artifact_is_told_so(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", small_config(testbed, evaluation=NO_EVALUATION))
    first = sail.start("run", config, "--out", tmp_path / "a", cwd=tmp_path, at=stop_at(r"/groups-00001.parquet$"))
    first.wait_until_stopped()
    (busy,) = [path.stem for path in store_of(tmp_path / "a").glob("samples-*.partial")]

    second = sail.run("run", config, "--out", tmp_path / "b", cwd=tmp_path)

    assert second.returncode == 2
    assert f"another process is building {busy}" in second.error and "Wait for it" in second.error
    first.send(signal.SIGCONT)
    assert first.wait().returncode == 0
    third = sail.run("run", config, "--out", tmp_path / "b", cwd=tmp_path)
    assert third.returncode == 0 and third.announced[1] == {}


def test_the_second_of_two_processes_in_one_folder_is_told_so(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    """Another setting asks for other artifacts, so that no lock of theirs keeps the two apart."""
    config, out = write_config(tmp_path / "c.yaml", small_config(testbed, evaluation=NO_EVALUATION)), tmp_path / "run"
    first = sail.start("run", config, "--out", out, cwd=tmp_path, at=stop_at("os.rename .*/metrics.jsonl$"))
    first.wait_until_stopped()
    asked = (out / "config.yaml").read_bytes()

    second = sail.run("run", config, "loss.beta=0.4", "--out", out, cwd=tmp_path)

    assert second.returncode == 2
    assert f"another process is running in '{out}'" in second.error and "Wait for it" in second.error
    assert (out / "config.yaml").read_bytes() == asked
    for looking in (["status", out], ["plan", config, "--out", out], ["verify", out]):
        assert sail.run(*looking, cwd=tmp_path).returncode == 0
    first.send(signal.SIGKILL, signal.SIGCONT)
    assert first.wait().returncode == -signal.SIGKILL
    assert sail.run("run", config, "--out", out, cwd=tmp_path).returncode == 0, "a dead process holds no lock"


def test_a_process_that_comes_late_to_a_lock_takes_what_the_other_has_made(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    """It found the artifact missing, and it is there by the time the lock is free."""
    config = write_config(tmp_path / "c.yaml", small_config(testbed, evaluation=NO_EVALUATION))
    late = sail.start("run", config, "--out", tmp_path / "a", cwd=tmp_path, at=stop_at(r"/locks/samples-\S*.lock"))
    late.wait_until_stopped()
    assert sail.run("run", config, "--out", tmp_path / "b", cwd=tmp_path).returncode == 0
    before = stamps(store_of(tmp_path / "b"))
    late.send(signal.SIGCONT)
    done = late.wait()
    assert done.returncode == 0, done.err
    assert stamps(store_of(tmp_path / "b")) == before
    assert linked(tmp_path / "a") == linked(tmp_path / "b")


def test_ctrl_c_exits_with_130_and_the_resumed_run_says_what_it_reuses(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "c.yaml", small_config(testbed, evaluation=NO_EVALUATION))
    out = tmp_path / "run"
    attempt = sail.start("run", config, "--out", out, cwd=tmp_path, at=stop_at(r"os.rename .*/groups-00002.parquet$"))
    attempt.wait_until_stopped()
    attempt.send(signal.SIGINT, signal.SIGCONT)
    stopped = attempt.wait()
    assert stopped.returncode == 130
    assert "stopped; the same command goes on from here" in stopped.err and "Traceback" not in stopped.err

    resumed = sail.run("run", config, "--out", out, cwd=tmp_path)

    assert resumed.returncode == 0, resumed.err
    kept = [int(line.split("reusing ")[1].split()[0]) for line in resumed.out.splitlines() if "reusing " in line]
    assert kept in ([16], [24]), "two samples on each of four prompts a shard; two or three shards were committed"
    assert f"reusing {kept[0]} samples of {kept[0] // 2} prompts" in resumed.out
    assert json.loads((out / "run.json").read_text())["finished"] is True

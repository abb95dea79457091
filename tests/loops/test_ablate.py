"""`sail ablate`: every arm x seed an ordinary run, nothing computed twice, killed and resumed as a whole."""

import fcntl
import json
import random
import runpy
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from loops.ablation_folder import AblationFolder
from loops.config import resolve
from loops.context import Context, Engines
from sail import load_run
from sail.core.run_settings import VllmSettings
from sail.core.store import Store
from tests.loops.running import (
    Done,
    Zygote,
    committed,
    digests,
    kill_at,
    linked,
    run_afresh,
    small_config,
    stamps,
    write_config,
)

ARMS: dict[str, Any] = {
    "offline": {"routes.online.share": 0},
    "soft": {"routes.online.label_mode": "soft"},
    "hard": {"routes.online.label_mode": "hard"},
}
RUNS = [f"{arm}-seed{seed}" for seed in (1, 2) for arm in ARMS]


def write_ablation(folder: Path, testbed: Path, **changes: Any) -> Path:
    base = small_config(testbed, num_rounds=1, cpu_threads=1)
    document = {"base": base, "seeds": [1, 2], "arms": ARMS, "equal": {"optimizer_steps": 4}} | changes
    return write_config(folder / "labels.yaml", document)


@pytest.fixture(scope="module")
def ablation(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ablation(tmp_path_factory.mktemp("config"), testbed)


@pytest.fixture(scope="module")
def uninterrupted(ablation: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    out = tmp_path_factory.mktemp("whole") / "labels"
    done = run_afresh("ablate", ablation, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.err
    return out, done


def store_of(out: Path) -> Path:
    """The runs' store lies beside the ablation, where other runs of the root find it."""
    return out.parent / ".store"


def built(out: Path) -> Counter[str]:
    """How often each artifact was built, over all runs and attempts."""
    return Counter(id for id, _ in AblationFolder(out).built())


def test_no_artifact_is_computed_twice(uninterrupted: tuple[Path, Done]) -> None:
    out, _ = uninterrupted
    times = built(out)
    assert set(times) == set(committed(store_of(out))), "every artifact of the store was built by one of the runs"
    assert set(times.values()) == {1}


def test_arms_and_seeds_share_what_is_equal(uninterrupted: tuple[Path, Done]) -> None:
    out, _ = uninterrupted
    stages = Counter(artifact.stage for artifact in committed(store_of(out)).values())
    assert (stages["reward"], stages["prompts"]) == (1, 1), "shared by all seeds"
    checkpoints = {run: linked(out / run)["rounds/000/checkpoint"] for run in RUNS}
    assert len(set(checkpoints.values())) == stages["checkpoint"] == len(RUNS)
    drawn = {run: linked(out / run)["rounds/000/samples/online"] for run in RUNS if "offline" not in run}
    assert drawn["soft-seed1"] == drawn["hard-seed1"] != drawn["soft-seed2"], "round 0 of a seed is drawn once"
    starts = {run: linked(out / run)["rounds/start/evaluation"] for run in RUNS}
    assert len(set(starts.values())) == 2, "one evaluation of the start a seed"


def test_what_sharing_saved_is_printed(uninterrupted: tuple[Path, Done]) -> None:
    out, done = uninterrupted
    asked = [id for run in RUNS for id in json.loads((out / run / "plan.json").read_text())["artifacts"]]
    saved = AblationFolder(out).savings()
    assert (saved.num_asked, saved.num_distinct, saved.num_untimed) == (len(asked), len(set(asked)), 0)
    seconds = dict(AblationFolder(out).built())
    assert saved.seconds_asked == pytest.approx(sum(seconds[id] for id in asked))
    assert saved.seconds_computed == pytest.approx(sum(seconds.values()))
    assert 0 < saved.seconds_computed < saved.seconds_asked
    ratio = saved.seconds_computed / saved.seconds_asked
    assert f"{len(asked):,} artifacts asked for, {len(set(asked)):,} made" in done.out
    assert f"(ratio {ratio:.2f})" in done.out


def test_an_arm_is_an_ordinary_run(uninterrupted: tuple[Path, Done], sail: Zygote) -> None:
    out, _ = uninterrupted
    run = load_run(out / "soft-seed2")
    assert run.num_rounds == 1 and len(run.round(0).pairs("online")) == 16
    for command in ("status", "report", "verify"):
        assert sail.run(command, out / "soft-seed2", cwd=out.parent).returncode == 0
    alone = sail.run("run", out / "soft-seed2" / "config.yaml", "--out", out.parent / "alone", cwd=out.parent)
    assert alone.returncode == 0 and alone.announced[1] == {}, "its config asks for the same artifacts"
    shutil.rmtree(out.parent / "alone")


def test_the_table_holds_what_the_runs_say(uninterrupted: tuple[Path, Done]) -> None:
    out, done = uninterrupted
    told = json.loads((out / "results.json").read_text())
    rewards = {run: load_run(out / run).round(-1).metrics()["eval/reward"] for run in RUNS}
    soft = told["arms"]["soft"]
    assert soft["metrics"]["eval/reward"]["seeds"] == {"1": rewards["soft-seed1"], "2": rewards["soft-seed2"]}
    by_seed = [rewards[f"soft-seed{seed}"] - rewards[f"offline-seed{seed}"] for seed in (1, 2)]
    assert soft["metrics"]["eval/reward"]["difference"]["mean"] == pytest.approx(sum(by_seed) / 2)
    assert soft["spent"]["1"]["Optimizer steps"] == told["arms"]["offline"]["spent"]["1"]["Optimizer steps"] == 4
    assert soft["spent"]["1"]["Dataset pairs"] == 48 and told["arms"]["offline"]["spent"]["1"]["Sampled tokens"] == 0
    for name in ("results.md", "results-1.svg", "report.html"):
        assert (out / name).stat().st_size > 500
    assert "Difference to offline" in done.out


def test_the_results_page_takes_its_numbers_from_the_folder(uninterrupted: tuple[Path, Done], tmp_path: Path) -> None:
    out, _ = uninterrupted
    marks = "<!-- labels: written by scripts/docs_results -->\n", "<!-- end of labels -->\n"
    (tmp_path / "results.md").write_text(f"Before.\n{marks[0]}old{marks[1]}After.\n")
    script = Path(__file__).parents[2] / "scripts" / "docs_results"
    write = runpy.run_path(str(script))["write_results"]
    for _ in range(2):
        write(out, tmp_path)
        page = (tmp_path / "results.md").read_text()
        assert page.startswith("Before.\n") and page.endswith("After.\n") and "old" not in page
        assert page.count((out / "results.md").read_text()) == 1
        assert AblationFolder(out).savings().sentence() in page
    assert (tmp_path / "figures" / "labels-1.svg").read_bytes() == (out / "results-1.svg").read_bytes()


def test_a_second_time_there_is_nothing_to_do(uninterrupted: tuple[Path, Done], ablation: Path, sail: Zygote) -> None:
    out, _ = uninterrupted
    before, results = stamps(store_of(out)), (out / "results.json").read_bytes()
    attempts = sorted(path.name for path in out.rglob("attempt-*"))
    again = sail.run("ablate", ablation, "--out", out, cwd=out.parent)
    assert again.returncode == 0, again.err
    assert again.out.count("done already") == len(RUNS)
    assert stamps(store_of(out)) == before
    assert (out / "results.json").read_bytes() == results
    assert sorted(path.name for path in out.rglob("attempt-*")) == attempts
    (out / "results.json").unlink()
    assert sail.run("report", out, cwd=out.parent).returncode == 0
    assert (out / "results.json").read_bytes() == results


def test_a_second_command_in_its_folder_is_told_of_the_first(
    uninterrupted: tuple[Path, Done], ablation: Path, sail: Zygote
) -> None:
    out, _ = uninterrupted
    with (store_of(out) / "locks" / f"run-{out.name}.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = sail.run("ablate", ablation, "--out", out, cwd=out.parent)
    assert second.returncode == 2 and f"another process is running in '{out}'" in second.error


def test_the_plan_says_what_will_be_made_and_writes_nothing(
    uninterrupted: tuple[Path, Done], ablation: Path, sail: Zygote, tmp_path: Path
) -> None:
    out, _ = uninterrupted
    whole = sail.run("plan", ablation, "--out", tmp_path / "labels", cwd=tmp_path)
    assert whole.returncode == 0, whole.err
    assert list(tmp_path.iterdir()) == []
    num_asked = sum(len(AblationFolder(out).run(run).planned()) for run in RUNS)
    num_made = len(committed(store_of(out)))
    assert f"6 runs ask for {num_asked} artifacts, {num_made} of them different: 0 reused, {num_made} new" in " ".join(
        whole.out.split()
    )
    assert "equal over seeds: prompts, reward" in whole.out
    assert "for 6 new checkpoints" in whole.out
    after = sail.run("plan", ablation, "--out", out, cwd=out.parent)
    assert f"{num_made} reused, 0 new" in after.out


# ---- killed ----------------------------------------------------------------------------------------------------------


def assert_same_outcome(out: Path, uninterrupted: Path) -> None:
    assert digests(store_of(out)) == digests(store_of(uninterrupted))
    assert (out / "results.json").read_bytes() == (uninterrupted / "results.json").read_bytes()
    for run in RUNS:
        assert linked(out / run) == linked(uninterrupted / run)
        assert (out / run / "metrics.jsonl").read_bytes() == (uninterrupted / run / "metrics.jsonl").read_bytes()


def test_an_ablation_killed_in_its_runs_goes_on_with_what_is_missing(
    ablation: Path, uninterrupted: tuple[Path, Done], sail: Zygote, tmp_path: Path
) -> None:
    """In the update of one run, before the commit of another's, and while the last table is written."""
    whole, out = uninterrupted[0], tmp_path / "labels"
    ends = {run: linked(whole / run)["rounds/000/checkpoint"] for run in RUNS}
    points = [
        f"shutil.rmtree .*/{ends['soft-seed1']}.partial/scratch/step-00000002",
        f"os.rename .*/{ends['hard-seed1']}.partial .*",
        f"os.rename .*/{ends['soft-seed2']}.partial/.manifest.json.tmp",
        "open .*/.results.json.tmp w",
    ]
    for point in points:
        done = sail.run("ablate", ablation, "--out", out, cwd=tmp_path, at=kill_at(point))
        assert done.returncode == -signal.SIGKILL, f"{point}: {done.out[-2000:]} {done.err[-2000:]}"
    status = sail.run("status", out, cwd=tmp_path)
    assert status.out.count("done") == len(RUNS)
    last = sail.run("ablate", ablation, "--out", out, cwd=tmp_path)
    assert last.returncode == 0 and last.out.count("done already") == len(RUNS)
    assert_same_outcome(out, whole)
    assert set(built(out).values()) == {1}, "what a killed attempt had committed was not made again"


def test_an_ablation_killed_at_random_moments_ends_byte_identical(
    ablation: Path, uninterrupted: tuple[Path, Done], sail: Zygote, tmp_path: Path
) -> None:
    moments, out = random.Random(3), tmp_path / "labels"
    endings = []
    for _ in range(4):
        attempt = sail.start("ablate", ablation, "--out", out, cwd=tmp_path)
        timer = threading.Timer(moments.uniform(0.5, 3.0), attempt.send, [signal.SIGKILL])
        timer.start()
        endings.append(attempt.wait().returncode)
        timer.cancel()
    assert endings[0] == -signal.SIGKILL and set(endings) <= {-signal.SIGKILL, 0}
    assert sail.run("ablate", ablation, "--out", out, cwd=tmp_path).returncode == 0
    assert_same_outcome(out, uninterrupted[0])


def test_status_tells_runs_that_are_done_from_those_under_way(ablation: Path, sail: Zygote, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    third_evaluation = kill_at(r"os.rename .*/evaluation-\w+.partial .*/evaluation-\w+$", nth=3)
    done = sail.run("ablate", ablation, "--out", out, cwd=tmp_path, at=third_evaluation)
    assert done.returncode == -signal.SIGKILL
    status = sail.run("status", out, cwd=tmp_path)
    assert status.returncode == 0
    words = status.out.replace("│", " ").split()
    assert words.count("done") == 1 and words.count("begun") == 1 and words.count("-") == 4
    assert "not complete" in status.out


# ---- failing ---------------------------------------------------------------------------------------------------------


def test_a_failing_arm_is_told_of_and_loses_no_other(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    (tmp_path / "broken_taste.py").write_text("def score(examples):\n    return [float('nan')] * len(examples)\n")
    base = small_config(testbed, num_rounds=1, evaluation={"num_prompts": 8, "scorers": ["gold"]})
    base["labelers"]["broken"] = {"kind": "callable", "path": "broken_taste:score"}
    arms = {"broken": {"routes.online.labels": "broken"}, **ARMS}
    config = write_ablation(tmp_path, testbed, base=base, arms=arms, compare_to="offline", seeds=[1])
    out = tmp_path / "runs" / "labels"
    done = sail.run("ablate", config, cwd=tmp_path)
    assert done.returncode == 1
    assert "failed labelers.broken.path" in done.out and "Failed and left out: broken-seed1" in " ".join(
        done.out.split()
    )
    assert set(json.loads((out / "results.json").read_text())["arms"]) == set(ARMS)
    assert "broken_taste" in (out / "report.html").read_text()
    status = sail.run("status", out, cwd=tmp_path)
    assert status.out.count("failed") == 1 and "broken_taste" in status.out and "not complete" in status.out

    (tmp_path / "broken_taste.py").write_text("def score(examples):\n    return [len(e.response) for e in examples]\n")
    mended = run_afresh("ablate", config, cwd=tmp_path)
    assert mended.returncode == 0, mended.err
    assert mended.out.count("done already") == len(ARMS)
    assert set(json.loads((out / "results.json").read_text())["arms"]) == set(arms)


def test_results_of_other_settings_are_not_taken_for_these(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    """Killed in its first run after a change, the folders of the others still show the old runs."""
    arms = {name: ARMS[name] for name in ("offline", "hard")}
    config = write_ablation(tmp_path, testbed, arms=arms, seeds=[1])
    out = tmp_path / "runs" / "labels"
    assert sail.run("ablate", config, cwd=tmp_path).returncode == 0
    changed = yaml.safe_load(config.read_text())
    changed["base"]["loss"] = {"beta": 0.3}
    write_config(config, changed)
    at = kill_at("os.rename .*/checkpoint-.*partial")
    assert sail.run("ablate", config, cwd=tmp_path, at=at).returncode == -signal.SIGKILL
    told = sail.run("report", out, cwd=tmp_path)
    assert "offline-seed1, hard-seed1" in told.out, "both are left out"
    assert json.loads((out / "results.json").read_text())["arms"] == {}


# ---- engines ---------------------------------------------------------------------------------------------------------


def test_runs_share_engines_until_their_settings_differ(testbed: Path, tmp_path: Path) -> None:
    settings = resolve(small_config(testbed))
    engines = Engines(tmp_path)
    contexts = [Context(settings, Store(tmp_path), tmp_path, engines) for _ in range(2)]
    first = contexts[0].engine("transformers")
    first.use(contexts[0].model)
    contexts[0].close()
    assert contexts[1].engine("transformers") is first and hasattr(first, "_model"), "closed by none of the runs"
    other = settings.replace(vllm=VllmSettings(dtype="bfloat16"))
    assert Context(other, Store(tmp_path), tmp_path, engines).engine("transformers") is not first
    assert not hasattr(first, "_model"), "there is room for one"
    alone = Context(settings, Store(tmp_path), tmp_path)
    own = alone.engine("transformers")
    own.use(alone.model)
    alone.close()
    assert not hasattr(own, "_model")


@pytest.mark.vllm
@pytest.mark.slow
def test_one_server_serves_all_runs(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    base = small_config(testbed, num_rounds=1, generation={"engine": "vllm", "max_completion_length": 24})
    base["vllm"] = {"kv_cache_gib": 0.25, "max_model_len": 64}
    arms = {name: ARMS[name] for name in ("soft", "hard")}
    config = write_ablation(tmp_path, testbed, base=base, arms=arms, seeds=[1])
    out = tmp_path / "runs" / "labels"
    done = sail.run("ablate", config, cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert [str(log.relative_to(out)) for log in out.rglob("vllm-*.log")] == ["logs/attempt-1/vllm-1.log"]


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_an_ablation_finds_what_a_run_of_its_base_has_made(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    base = write_config(tmp_path / "base.yaml", small_config(testbed, num_rounds=1))
    assert sail.run("run", base, cwd=tmp_path).returncode == 0
    config = write_config(tmp_path / "again.yaml", {"base": "base.yaml", "seeds": [0], "arms": {"a": {}}})
    done = sail.run("ablate", config, cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert ", 0 new" in done.out and "were there before" in done.out


def test_two_ablations_of_one_name_do_not_share_a_folder(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    first = write_ablation(tmp_path, testbed, seeds=[1], arms={"offline": ARMS["offline"]})
    assert sail.run("ablate", first, cwd=tmp_path).returncode == 0
    (tmp_path / "other").mkdir()
    second = write_ablation(tmp_path / "other", testbed, seeds=[1], arms={"offline": ARMS["offline"]})
    refused = sail.run("ablate", second, cwd=tmp_path)
    assert refused.returncode == 2 and "--out" in refused.error
    run = write_config(tmp_path / "other" / "labels.yaml", small_config(testbed))
    refused = sail.run("run", run, cwd=tmp_path)
    assert refused.returncode == 2 and "belongs to" in refused.error

"""scripts/bench_online: both systems on a tiny piece of work, and the floor by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.online import VOCAB, Spent, Work, floor_flops, floor_seconds, ours, trl, write_model
from scripts.bench.online_run import spent_by
from scripts.bench.online_table import most_line, spent_table
from scripts.bench.trl_variants import HERE

WORK = Work(num_prompts=4, prompt_tokens=5, new_tokens=4, batch_size=2)
STAGES = {"generation", "labels", "reference", "update"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("online") / "model")


def test_our_rounds_are_timed_by_stage(tmp_path: Path, model: Path) -> None:
    _check(ours(model, WORK, tmp_path / "ours", "transformers"), tmp_path / "ours", rounds=2)


def test_a_run_in_a_process_of_its_own_brings_its_seconds_back(tmp_path: Path, model: Path) -> None:
    spent = spent_by("ours, one round", model, WORK, tmp_path, threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {"before", "whole"}
    _check(spent, tmp_path / "whole", rounds=1)


def _check(spent: Spent, folder: Path, rounds: int) -> None:
    assert all(spent.wall[stage] > 0 for stage in STAGES)
    assert sum(spent.wall[stage] for stage in STAGES) < spent.wall["whole"]
    made = [path.name.split("-")[0] for path in (folder / ".store").iterdir()]
    assert made.count("checkpoint") == made.count("samples") == made.count("logps") == rounds  # nothing scored twice


@pytest.mark.skipif(not HERE, reason="trl is not installed (extra: bench)")
def test_trls_rounds_are_timed_by_stage(tmp_path: Path, model: Path) -> None:
    spent = trl(model, WORK, tmp_path / "trl")
    assert all(spent.cpu[stage] > 0 for stage in STAGES)
    assert sum(spent.cpu[stage] for stage in STAGES) == pytest.approx(spent.cpu["whole"])


def test_the_floor_by_hand() -> None:
    """4 prompts of 5 tokens, 8 samples of 4, of which 3 are read: 44 tokens through three layers and the keys of the
    fourth, 28 that predict through the rest of it, 32 through the head."""
    keys, rest = 2 * 192**2, 2 * 192**2 + 3 * 192 * 640
    assert floor_flops(WORK)["reference"] == 2 * (44 * (4 * keys + 3 * rest) + 28 * rest + 32 * 192 * VOCAB)
    first_alike = 2 * 4 * 192 * VOCAB  # while sampling, a prompt has one row of the head for both samples
    assert floor_flops(WORK)["generation"] == floor_flops(WORK)["reference"] - first_alike
    assert floor_flops(WORK)["update"] == 3 * floor_flops(WORK)["reference"]


def test_the_products_of_a_step_take_longer_the_longer_the_prompts() -> None:
    short, long = (floor_seconds(Work(num_prompts=4, prompt_tokens=n, new_tokens=4, batch_size=2)) for n in (5, 100))
    assert all(0 < short[stage] < long[stage] for stage in short)
    assert long["update"] > long["reference"]
    runs = [Spent({"whole": 3 * sum(long.values())}, {})]
    assert "3.00 times as fast as TRL" in most_line(runs, long)


def test_the_work_of_processes_that_a_run_started_is_in_its_seconds() -> None:
    spent = Spent()
    command = [sys.executable, "-c", "sum(range(10**7)); print('done', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        with spent.on("whole"):
            worker.stdout.readline()
        worker.stdin.write("\n")
    assert spent.cpu["whole"] > 0.05


def test_ratios_are_taken_in_both_clocks() -> None:
    runs = {"trl": [Spent({"whole": 6.0}, {"whole": 8.0})], "ours, vLLM": [Spent({"whole": 1.0}, {"whole": 4.0})]}
    assert spent_table(runs).splitlines()[-1].split(" | ")[-4:] == ["6.00", "4.00", "2.00", "0.0 |"]

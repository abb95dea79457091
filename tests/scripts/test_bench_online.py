"""scripts/bench_online: both systems on a tiny piece of work, and the floor by hand."""

from pathlib import Path

import pytest

from scripts.bench.online import VOCAB, Spent, Work, floor_flops, ours, trl, write_model
from scripts.bench.online_table import spent_table
from scripts.bench.trl_variants import HERE

WORK = Work(num_prompts=4, prompt_tokens=5, new_tokens=4, batch_size=2)
STAGES = {"generation", "labels", "reference", "update"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("online") / "model")


@pytest.mark.parametrize(("fresh", "rounds"), [(True, 2), (False, 1)])
def test_our_rounds_are_timed_by_stage(tmp_path: Path, model: Path, fresh: bool, rounds: int) -> None:
    spent = ours(model, WORK, tmp_path / "ours", "transformers", fresh=fresh)
    assert all(spent.wall[stage] > 0 for stage in STAGES)
    assert sum(spent.wall[stage] for stage in STAGES) < spent.wall["whole"]
    made = [path.name.split("-")[0] for path in (tmp_path / "ours" / ".store").iterdir()]
    assert made.count("checkpoint") == made.count("samples") == rounds


@pytest.mark.skipif(not HERE, reason="trl is not installed (extra: bench)")
def test_trls_rounds_are_timed_by_stage(tmp_path: Path, model: Path) -> None:
    spent = trl(model, WORK, tmp_path / "trl")
    assert all(spent.cpu[stage] > 0 for stage in STAGES)
    assert sum(spent.cpu[stage] for stage in STAGES) == pytest.approx(spent.cpu["whole"])


def test_the_floor_by_hand() -> None:
    """4 prompts of 5 tokens and 8 samples of 4: 52 tokens through four layers, 32 through the head."""
    layers = 4 * (4 * 192**2 + 3 * 192 * 640)
    assert floor_flops(WORK)["reference"] == 2 * layers * 52 + 2 * 192 * VOCAB * 32
    assert floor_flops(WORK)["update"] == 3 * floor_flops(WORK)["generation"]


def test_a_servers_rounds_are_compared_in_wall_time_alone() -> None:
    runs = {"trl": [Spent({"whole": 6.0}, {"whole": 8.0})], "ours, vLLM": [Spent({"whole": 1.0}, {"whole": 4.0})]}
    assert spent_table(runs).splitlines()[-1].split(" | ")[-4:] == ["-", "4.00", "2.00", "0.0 |"]

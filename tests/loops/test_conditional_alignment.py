"""Conditional alignment: one tag in training, sampling, evaluation and the saved template; none for those who judge."""

from pathlib import Path

import pytest

from sail.core.artifacts import Artifact
from sail.core.records import ResponseRow, SampleGroup
from sail.policy.chat import prompt_ids
from sail.policy.loading import load_tokenizer
from sail.results import load_run
from tests.loops.running import Zygote, small_config, store_of, write_config

LEVELS = ["awful", "bad", "average", "good", "superb"]
TAG = {"format": " {level} ", "levels": LEVELS, "target": "p90", "evaluate_at": ["p10"], "dropout": 0.2}


@pytest.fixture(scope="module")
def out(testbed: Path, tmp_path_factory: pytest.TempPathFactory, sail: Zygote) -> Path:
    root = tmp_path_factory.mktemp("ca")
    config = small_config(testbed, preset="ca", num_rounds=0, components={"prompt_tag": TAG})
    done = sail.run("run", write_config(root / "ca.yaml", config), "--out", root / "run", cwd=root)
    assert done.returncode == 0, done.err
    return root / "run"


def artifact(out: Path, name: str) -> Artifact:
    """Where a link of round 0 points to."""
    stage, _, key = (out / "rounds" / "000" / name).resolve().name.rpartition("-")
    return Artifact(stage, key, store_of(out) / f"{stage}-{key}")


def test_rows_are_trained_behind_the_level_of_their_own_score(out: Path) -> None:
    rows = artifact(out, "pairs/offline")
    groups = {group.samples[0].response_id: group for group in rows.read(SampleGroup, "groups")}
    tokenizer = load_tokenizer(artifact(out, "checkpoint"))
    tags = [row.tag for row in rows.read(ResponseRow, "rows")]
    assert 0.05 < tags.count("") / len(tags) < 0.4
    for row in rows.read(ResponseRow, "rows"):
        group = groups[row.response_id]
        before = tokenizer.decode(list(group.prompt.token_ids))
        assert row.target is not None
        assert before.endswith(f"<sep>{row.tag.rstrip()}")
        if row.tag:
            assert row.tag.strip() == LEVELS[sum(row.target > edge for edge in (-0.8416, -0.2533, 0.2533, 0.8416))]
        assert group.prompt.messages == row.prompt and not set(LEVELS) & set(row.prompt[-1]["content"].split())


def test_samples_ask_for_the_target_and_the_saved_template_asks_alike(out: Path) -> None:
    tokenizer = load_tokenizer(artifact(out, "checkpoint"))
    for group in artifact(out, "evaluation_samples").read(SampleGroup, "groups"):
        assert tokenizer.decode(list(group.prompt.token_ids)).endswith("<sep> superb")
        assert prompt_ids(tokenizer, group.prompt.messages) == group.prompt.token_ids
        assert "superb" not in group.prompt.messages[-1]["content"]


def test_further_targets_are_evaluated_beside_it(out: Path) -> None:
    asked, low = (artifact(out, name).result() for name in ("evaluation", "evaluation@p10"))
    assert asked["eval/reward"] != low["eval/reward"]
    assert artifact(out, "evaluation@p90").result() == asked
    assert load_run(out).round(0).rows("offline").column_names[:2] == ["row_id", "prompt_id"]


def test_every_target_has_its_row_under_the_table_of_rounds_and_its_line_in_the_metrics(
    out: Path, sail: Zygote
) -> None:
    told = sail.run("status", out, cwd=out.parent).out
    rows = [line.split()[0] for line in told.split("asked for")[1].splitlines() if line.startswith(" p")]
    assert rows == ["p10", "p90"]
    *_, own, other, evaluation = load_run(out).metrics()
    assert [line["kind"] for line in (own, other, evaluation)] == ["target", "target", "evaluation"]
    assert (own["target"], other["target"]) == ("p90", "p10") and own["eval/reward"] == evaluation["eval/reward"]
    assert "Table of targets" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "score: "}, "needs {value}"),
        ({"format": " {level} "}, "needs {value}"),
        ({"target": "best"}, "percentile such as p90"),
    ],
)
def test_a_tag_that_says_nothing_is_refused(
    change: dict[str, str], problem: str, testbed: Path, tmp_path: Path, sail: Zygote
) -> None:
    config = small_config(testbed, preset="ca", num_rounds=0, components={"prompt_tag": change})
    done = sail.run("run", write_config(tmp_path / "ca.yaml", config), cwd=tmp_path)
    assert done.returncode == 2 and problem in done.error

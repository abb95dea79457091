"""Whole runs with the labelers that talk to somebody: a judge at an endpoint, people, rules, second opinions."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loops.documents import merge
from sail import load_run
from sail.core.records import PairVerdict, PreferencePair, ScoredGroup
from sail.testbed.judge import MODEL, GoldJudge
from tests.labeling.endpoints import Recorder, serving
from tests.loops.running import NO_EVALUATION, committed, small_config, store_of
from tests.loops.test_commands import command, exit_code

SMALL = {
    "prompts": {"from": "prompts", "per_round": 6},
    "update": {"steps": 2, "train_batch_size": 4, "learning_rate": 1e-3, "lr_scheduler_type": "constant"},
    "generation": {"engine": "transformers", "max_completion_length": 24},
    "hygiene": {"truncated": "keep", "ties": "keep", "identical": "keep"},
    "evaluation": NO_EVALUATION,
    "cpu_threads": 1,
}


def config(testbed: Path, folder: Path, preset: str, **changes: Any) -> Path:
    whole = merge({**small_config(testbed, **SMALL), "preset": preset}, changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def judge_at(url: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "judge", "url": url, "model": MODEL, "max_retries": 0, **changes}


def test_a_judged_run_counts_what_its_judge_said_and_shows_each_pairs_life(
    testbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "judged"
    regulation = [{"step": "smooth", "epsilon": 0.1}, {"step": "disagreement", "with": "gold", "do": "soften"}]
    online = {"labels": {"by": "judge", "mode": "soft", "regulation": regulation, "audit": ["gold", "noisy"]}}
    with serving(Recorder(GoldJudge("hump", temperature=2.0, first_bias=1.0))) as server:
        labelers = {"judge": judge_at(server.url), "noisy": {"kind": "noise", "of": "gold", "rate": 0.5}}
        path = config(testbed, tmp_path, "oaif", labelers=labelers, routes={"online": online})
        printed = command("run", str(path), "--out", str(out), capsys=capsys)
        recorder: Recorder = server.reply  # type: ignore[assignment]
        asked = len(recorder.asked)
        assert "nothing to do" in command("run", str(path), "--out", str(out), capsys=capsys)
        tempered = "routes.online.labels.regulation=[{step: temper, temperature: 3}]"
        command("run", str(path), tempered, "num_rounds=1", "--out", str(out.with_name("other")), capsys=capsys)
        assert len(recorder.asked) == asked  # the first round's verdicts serve other labels too
    assert "verdicts 2" in printed and "audit 2" in printed
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    labels = {name for line in lines if line["kind"] == "labels" for name in line}
    assert {"judge/order_flips", "labels/changed_smooth", "quality/ece/gold", "quality/flip_rate/noisy"} <= labels
    page = (out / "report.html").read_text()
    assert all(title in page for title in ("The judge", "Agreement of labels", "Reliability of labels, online"))
    run = load_run(out)
    (pair, *_) = [row for row in run.round(0).pairs("online") if row["steps"]]
    story = command("show", str(out), pair["pair_id"], capsys=capsys)
    for told in (
        rf"A  {pair['a_id']}: policy, policy \w+, seed \d+, \d+ tokens, ended by",
        r"verdicts/online \(verdicts-\w+\): \w+",
        r"A shown first: \w+, B shown first: \w+", r"scores/online@gold \(scores-\w+\): A -?[\d.]+, B",
        rf"labelled by judge \({pair['labeler_digest']}\), soft, by its verdict", r"draw 0\.\d+",
        r"regulation: smooth epsilon=0\.1: ",
        rf"label: {pair['verdict']}, P\(A beats B\)",
        r"among the pairs of checkpoint-\w+",
    ):  # fmt: skip
        assert re.search(told, story), f"{told} not in {story}"


def test_points_of_a_rubric_pair_the_best_with_the_worst(
    testbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "rubric"
    with serving(GoldJudge("hump")) as server:
        labelers = {"judge": judge_at(server.url, question="rubric")}
        path = config(testbed, tmp_path, "self-rewarding", labelers=labelers, num_rounds=1)
        command("run", str(path), "--out", str(out), capsys=capsys)
    artifacts = committed(store_of(out)).values()
    (scores,) = [one for one in artifacts if one.stage == "scores"]
    (pairs,) = [one for one in artifacts if one.stage == "pairs"]
    by_prompt = {row.prompt_id: row.scores for row in scores.read(ScoredGroup, "scores")}
    assert {score for row in by_prompt.values() for score in row} <= set(range(6))
    for pair in pairs.read(PreferencePair, "pairs"):
        assert {pair.score_a, pair.score_b} == {max(by_prompt[pair.prompt_id]), min(by_prompt[pair.prompt_id])}


def test_a_run_waits_for_people_with_a_message_and_an_exit_code_of_its_own(
    testbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheets = tmp_path / "runs" / "people", tmp_path / "sheets"
    labelers = {"judge": {"kind": "human", "folder": str(sheets)}}
    path = config(testbed, tmp_path, "oaif", labelers=labelers, num_rounds=1)
    assert exit_code("run", str(path), "--out", str(out)) == 3
    told = capsys.readouterr().out
    (sheet,) = sheets.glob("judge-*.csv")
    assert str(sheet) in told and "run the same command" in told
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"verdict": "tie" if number == 0 else "A"} for number, row in enumerate(rows))
    command("run", str(path), "--out", str(out), capsys=capsys)
    (verdicts,) = [one for one in committed(store_of(out)).values() if one.stage == "verdicts"]
    said = [verdict.verdict for verdict in verdicts.read(PairVerdict, "pair_verdicts")]
    assert said.count("tie") >= 1 and len(said) == 6


def test_an_ensemble_labels_and_evaluates_in_units_of_the_first_round(
    testbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "ensemble"
    labelers = {
        "linear": {"kind": "callable", "path": "sail.testbed.gold:linear"},
        "short": {"kind": "rule", "regex": r"^(\S+ ){0,8}\S+$"},
        "judge": {"kind": "ensemble", "of": ["gold", "linear", "short"], "combine": "min"},
    }
    evaluation = {"num_prompts": 4, "scorers": ["judge", "gold"]}
    path = config(testbed, tmp_path, "oaif", labelers=labelers, num_rounds=2, evaluation=evaluation)
    command("run", str(path), "--out", str(out), capsys=capsys)
    rounds = json.loads((out / "run.json").read_text())["rounds"]
    store = committed(store_of(out))
    first, second = (store[rounds[n]["artifacts"]["scores/online"]].manifest() for n in (1, 2))
    members = lambda manifest, kind: {k: v for k, v in manifest["inputs"].items() if k.startswith(kind)}  # noqa: E731
    assert list(members(first, "first").values()) == list(members(first, "member").values())
    assert members(second, "first") == members(first, "first") != members(second, "member")
    assert [first["result"][name] for name in ("mean/gold", "std/short")] == [
        second["result"][name] for name in ("mean/gold", "std/short")
    ]


def test_an_alarm_may_end_the_run_with_an_exit_code_of_its_own(
    testbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy is trained on what gold likes least: gold falls, its opposite rises."""
    (tmp_path / "opposite_taste.py").write_text(
        "from sail.testbed.gold import hump\n\ndef score(examples):\n    return [-value for value in hump(examples)]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        labelers = {"judge": {"kind": "callable", "path": "opposite_taste:score"}}
        evaluation = {"num_prompts": 24, "scorers": ["judge", "gold"], "stop_on_alarm": True}
        update = SMALL["update"] | {"steps": 24, "train_batch_size": 16, "learning_rate": 5e-3}  # type: ignore[operator]
        path = config(
            testbed, tmp_path, "oaif", labelers=labelers, evaluation=evaluation, update=update, num_rounds=4,
            prompts={"per_round": 48},
        )  # fmt: skip
        assert exit_code("run", str(path), "--out", "runs/alarmed") == 4
        printed = capsys.readouterr().out
        rounds = json.loads((tmp_path / "runs" / "alarmed" / "run.json").read_text())["rounds"]
        assert exit_code("run", str(path), "--out", "runs/alarmed") == 4, "the alarm still stands"
        assert json.loads((tmp_path / "runs" / "alarmed" / "run.json").read_text())["rounds"] == rounds
        capsys.readouterr()
        (tmp_path / "arms.yaml").write_text(f"{{base: {path}, arms: {{as-it-is: {{}}}}}}")
        assert exit_code("ablate", str(tmp_path / "arms.yaml"), "--out", "runs/arms") == 1, "an arm that an alarm stops"
        told = " ".join(capsys.readouterr().out.split())
        assert "Failed and left out: as-it-is-seed0: stopped by an alarm" in told
    assert "stopped by an alarm" in printed and "done" not in printed.splitlines()
    assert 2 <= len(rounds) < 5
    assert "over-optimisation" in (tmp_path / "runs" / "alarmed" / "report.html").read_text()

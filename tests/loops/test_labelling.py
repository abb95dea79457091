"""Who labels, from a labeler's name to what the stages get."""

import json
from pathlib import Path
from typing import Any

import pytest

from loops.checks import check_run
from loops.config import resolve
from loops.context import Context
from loops.documents import merge
from loops.iterate import run_phases
from loops.labelling import Responses, auditors, second_opinions
from loops.plan import PlanBuilder
from sail.core.records import ResponseRow
from sail.core.store import Store
from sail.labeling.labelers.noise import NoiseEvidence
from tests.labeling.doubles import write_policy


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """KTO on a dataset of thirty pairs, good against bad."""
    pairs = [{"prompt": f"{n} film", "chosen": "good .", "rejected": "bad ."} for n in range(30)]
    (tmp_path / "prefs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return {
        "preset": "kto",
        "model_name_or_path": str(write_policy(tmp_path / "policy")),
        "data": {"prefs": {"path": str(tmp_path / "prefs.jsonl")}},
        "update": {"steps": 1, "train_batch_size": 4},
        "labelers": {"noisy": {"kind": "noise", "of": "prefs", "rate": 0.3}},
        "routes": {"offline": {"responses": "prefs", "labels": "noisy"}},
        "cpu_threads": 1,
    }


def test_noise_over_a_data_source_turns_thumbs_round(config: dict[str, Any], tmp_path: Path) -> None:
    settings = resolve(config)
    check_run(settings, ["vllm", "transformers"])
    (record,) = run_phases(Context(settings, Store(tmp_path / "store"), tmp_path))
    rows = record.artifacts["pairs/offline"].read(ResponseRow, "rows")
    turned = [row for row in rows if (row.completion[0]["content"] == "good .") != (row.target == 1.0)]
    assert len(rows) == 60 and 8 < len(turned) < 30
    assert {row.labeler for row in rows} == {"noisy"}


def test_a_routes_temperature_is_in_the_unit_of_its_labeler_and_of_no_second_one(
    config: dict[str, Any], tmp_path: Path
) -> None:
    labels = {
        "by": "gold", "temperature": 8.0, "regulation": [{"step": "disagreement", "with": "other"}],
        "audit": ["fitted", "gold", "unsure", "prefs"],
    }  # fmt: skip
    labelers = {
        "gold": {"kind": "callable", "path": "sail.testbed.gold:hump"},
        "other": {"kind": "callable", "path": "sail.testbed.gold:linear"},
        "fitted": {"kind": "reward_model", "fit": {"data": "prefs"}},
        "unsure": {"kind": "noise", "of": "gold", "rate": 0.1},
    }
    settings = resolve(merge(config, {
        "preset": "dpo", "labelers": labelers, "routes": {"offline": {"labels": labels}},
    }))  # fmt: skip
    check_run(settings, ["vllm", "transformers"])
    context = Context(settings, PlanBuilder(Store(tmp_path / "store")), tmp_path)
    route, data = settings.phases[0].routes["offline"], context.data("prefs")
    asked = Responses("offline", data, lambda: data, context.model, "verdicts", seed=0)
    seen = {**second_opinions(context, route, asked, {}), **auditors(context, route, asked, {})}
    unsure = seen.pop("unsure")
    assert isinstance(unsure, NoiseEvidence)
    temperatures = {name: one.temperature for name, one in (seen | {"unsure": unsure.of}).items()}
    assert temperatures == {
        "other": 1.0, "fitted": context.fitted("fitted"), "gold": 8.0, "prefs": 1.0, "unsure": 8.0,
    }  # fmt: skip
